"""Every setting of a recipe has a test that says it fails where the setting is ignored.

`@pytest.mark.setting("section.name")` is that claim. `python tests/mutation/run.py settings`
verifies it: it makes the schema return the default for one setting after another and runs the
tests that claim it, which must fail.
"""

from __future__ import annotations

from setting_claims import claims, every_setting


def test_settings_are_all_claimed_by_a_test() -> None:
    missing = sorted(set(every_setting()) - set(claims()))
    assert not missing, (
        "no test claims to fail where these settings are ignored; mark one with "
        f"@pytest.mark.setting(...): {', '.join(missing)}"
    )


def test_settings_that_are_claimed_exist() -> None:
    unknown = {name: files for name, files in claims().items() if name not in every_setting()}
    assert not unknown
