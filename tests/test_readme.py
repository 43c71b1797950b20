"""The README's example does what it says."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import pytest
from timm_import import require_timm

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(not README.is_file(), reason="needs the checkout: the README is not part of the sdist's tests")
def test_the_oracle_example_prints_a_rounding_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_timm()
    from coatref.images import photograph

    example = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len([line for line in example.splitlines() if line]) <= 10
    photograph().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    offline = example.replace("pretrained=True", "pretrained=False")
    assert offline != example
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(offline, "README.md", "exec"), {})  # noqa: S102 - the code is our own README's
    assert os.listdir(tmp_path) == ["photo.jpg"]
    assert 0 < float(printed.getvalue()) < 1e-11
