"""The length of the decay of a WSD schedule."""

from __future__ import annotations


def test_schedule_wsd_without_its_decay_is_refused(refused):
    problem = refused("--optimizer.lr_decay_style=WSD")
    assert problem.setting == "optimizer.lr_wsd_decay_steps"
    assert "in optimizer steps" in problem.fix


def test_schedule_refuses_a_decay_of_wsd_without_wsd(refused, check):
    problem = refused("--optimizer.lr_wsd_decay_steps=5")
    assert problem.problem == "optimizer.lr_decay_style is constant"
    assert check("--optimizer.lr_decay_style=WSD", "--optimizer.lr_wsd_decay_steps=5") == []
