"""The admin's pages carry the site's name."""

import pytest


@pytest.mark.parametrize("path", ["/admin/", "/admin/backends_app/backend/"])
def test_the_admin_says_vulcan(operator, path: str):
    page = operator.get(path).content.decode()
    assert "Django administration" not in page
    assert "| Vulcan</title>" in page


def test_the_log_in_says_vulcan(client):
    page = client.get("/admin/login/").content.decode()
    assert "Django administration" not in page
    assert ">Vulcan</a>" in page
