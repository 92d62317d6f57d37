from pathlib import Path

from rlalign.report.configuration_page import configuration_page
from rlalign.settings.method_sections import AnyRun
from rlalign.settings.schema import settings

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


def test_the_page_is_the_one_that_the_schema_gives():
    assert PAGE.read_text() == configuration_page(AnyRun), (
        "run: rlalign config --markdown > docs/configuration.md"
    )


def test_every_setting_is_on_the_page_with_a_description():
    rows = configuration_page(AnyRun).splitlines()
    paths = [setting.path for setting in settings(AnyRun.model_json_schema())]
    assert len(paths) > 50
    for path in paths:
        row = next(row for row in rows if row.startswith(f"| `{path}` |"))
        assert len(row.split(" | ")[-1].strip(" |")) > 10, row
