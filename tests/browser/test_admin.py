"""The admin in a browser: sign in, kill a running workload, rerun one, probe a backend."""

from playwright.sync_api import expect

QUICK = {"runtime": "node", "code": "export default (x) => x", "input": "again"}


def test_the_kill_button_kills_a_running_workload(page, site, sign_in):
    sign_in(page, "root")
    with site.long_workload() as workload:
        page.goto("/")
        page.get_by_role("link", name="Admin").click()
        page.get_by_role("link", name="Workloads", exact=True).first.click()
        page.get_by_role("link", name=workload[:8]).first.click()
        page.get_by_role("button", name="Kill").click()
        expect(page.locator(".messagelist")).to_contain_text("killed")
        assert site.call("GET", f"/v1/workloads/{workload}")[1]["status"] == "killed"


def test_the_rerun_button_runs_a_workload_again(page, site, sign_in):
    _, first = site.call("POST", "/v1/workloads", QUICK, person="ada")
    sign_in(page, "root")
    page.goto(f"/admin/backends_app/workload/{first['id']}/change/")
    page.get_by_role("button", name="Rerun").click()
    expect(page.locator(".messagelist")).to_contain_text("submitted again")

    def newest() -> dict:
        return site.call("GET", "/v1/workloads?page_size=1")[1]["results"][0]

    while newest()["id"] == first["id"] or newest()["status"] in ("pending", "running"):
        page.wait_for_timeout(50)
    assert (newest()["owner"], newest()["status"]) == ("root", "completed")
    _, again = site.call("GET", f"/v1/workloads/{newest()['id']}")
    assert again["output"] == "again"


def test_the_probe_button_probes_a_backend(page, sign_in):
    sign_in(page, "root")
    page.goto("/admin/")
    page.get_by_role("link", name="Backends", exact=True).first.click()
    expect(page.get_by_role("main")).to_contain_text("isolate")
    page.get_by_role("button", name="Probe now").last.click()
    expect(page.locator(".messagelist")).to_contain_text("healthy")
