"""Planted faults stay plantable: the text that each takes the place of stands in its file once, and its tests' files
are there. Planting them is `make faults`."""

from __future__ import annotations

from pathlib import Path

import faults
import pytest


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_it_can_be_planted(fault):
    assert (faults.ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.old != fault.new
    for test in fault.tests:
        file, _, name = test.partition("::")
        function = name.partition("[")[0].rpartition("::")[2]
        assert f"def {function}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")


def test_a_pattern_that_no_fault_has_is_told(capsys):
    with pytest.raises(SystemExit):
        faults.main(["--only", "nothing of the kind"])
    assert "no fault has 'nothing of the kind'" in capsys.readouterr().err
