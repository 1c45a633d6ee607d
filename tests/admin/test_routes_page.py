"""Admin page of the routes: the table and the explanation of decisions."""

import pytest

from backends_app.backends.base import Health
from tests.admin.pages import Page

PAGE = "/admin/backends_app/route/"


def explain(client, **query: str) -> str:
    return Page(client.get(PAGE, {"isolation": "auto", "source_format": "code", **query})).text


def test_the_table_shows_whether_each_route_is_eligible_and_why(operator, fleet, isolate):
    fleet.set_health("isolate", isolate, Health.unhealthy("broken"))
    text = Page(operator.get(PAGE)).text
    assert "runtime node → isolate no unhealthy: broken" in text
    assert "runtime oci → gvisor yes healthy" in text
    assert text.index("source format image") < text.index("runtime node") < text.index("default →")
    assert "Candidate" not in text


def test_a_decision_is_explained(operator):
    text = explain(operator, runtime="typescript")
    assert "isolate is selected. Rule: runtime node → isolate." in text
    assert "isolate yes healthy gvisor no runs oci only microvm no runs python, go only" in text
    assert "gvisor is selected. Rule: source format image" in explain(
        operator, source_format="image"
    )


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"isolation": "nothing", "runtime": "node"}, "Backend 'nothing' is not registered."),
        ({"isolation": "gvisor,microvm", "runtime": "wasm"}, "Rule: first eligible of gvisor, mic"),
        ({"runtime": "cobol"}, "'microvm' does not support runtime 'cobol'"),
        ({}, "Missing: give one of"),
        ({"isolation": "gvisor,gvisor", "runtime": "oci"}, "is in the list twice."),
        ({"runtime": "node", "source_format": "archive"}, "does not support runtime 'node'"),
    ],
)
def test_a_refusal_is_explained(operator, query, why):
    text = explain(operator, **query)
    assert "refused" in text
    assert why in text


def test_an_unhealthy_target_is_a_refusal_with_its_reason(operator, fleet, isolate):
    fleet.set_health("isolate", isolate, Health.unhealthy("broken"))
    assert "is unavailable: broken" in explain(operator, runtime="node")


def test_the_form_keeps_its_values_and_refuses_invalid_ones(operator):
    content = operator.get(PAGE, {"isolation": "auto", "runtime": "node", "source_format": "code"})
    assert 'value="node"' in content.content.decode()
    assert "Select a valid choice" in explain(operator, source_format="floppy")
    assert "at most 63 characters" in explain(operator, runtime="x" * 64)


def test_form_values_are_escaped(operator):
    evil = '"><script>alert(1)</script>'
    page = Page(operator.get(PAGE, {"isolation": evil, "runtime": evil, "source_format": "code"}))
    assert page.forbidden == []
    assert "alert(1)" in page.text
