"""trace: two backends op by op."""
from __future__ import annotations

import numpy as np
import pytest
from reference_models import random_values, stored

from pyruntime import errors
from pyruntime.backends.native import NativeBackend
from pyruntime.models import llama
from pyruntime.trace import trace
from pyruntime.types import Batch

PLAN = llama.plan(llama.tiny())
VALUES = random_values(PLAN, 1)
BATCH = Batch.build([([1, 2, 3], 0, 0), ([9], 0, 0)], tables=[[[2], [5]]])


def native(values=VALUES, plan=PLAN, **options) -> NativeBackend:
    return NativeBackend(plan, stored(plan, values), pages=8, threads=1, precision="precise", **options)


def test_equal_backends_have_no_difference():
    assert trace(native(), native(isa="scalar"), BATCH, 0.0) is None


def test_the_first_slot_that_differs_is_named():
    values = {name: v.copy() for name, v in VALUES.items()}
    values["blk.1.attn_output.weight"][17] += 0.25
    found = trace(native(), native(values), BATCH)
    assert found is not None
    assert (found.kind, found.layer, found.slot, found.element) == ("linear_add", 1, "x", 17)
    assert found.op == 1 + 6 + 3 and found.reference != found.candidate
    assert "layer 1" in str(found) and "x[" in str(found) and "\n" not in str(found)


def test_following_judges_each_op_by_itself():
    values = {name: v.copy() for name, v in VALUES.items()}
    values["blk.0.ffn_up.weight"] *= 1.0001
    values["output_norm.weight"] *= 2
    assert trace(native(), native(values), BATCH, 1e-2, follow=True).kind == "logits"


def test_not_a_number_is_found():
    values = {name: v.copy() for name, v in VALUES.items()}
    values["output_norm.weight"][3] = np.nan
    found = trace(native(), native(values), BATCH)
    assert found.kind == "logits" and np.isnan(found.candidate) and found.layer == -1
    assert trace(native(values), native(values), BATCH, 0.0) is None


def test_the_reference_in_torch_agrees():
    pytest.importorskip("torch")
    from pyruntime.backends.torch import TorchBackend

    assert trace(TorchBackend(PLAN, stored(PLAN, VALUES), pages=8), native(), BATCH, 1e-4) is None


def test_two_plans_cannot_be_traced():
    other = llama.plan(llama.tiny(layers=1))
    with pytest.raises(errors.FieldInvalid, match="different plans"):
        trace(native(), native(random_values(other, 0), other), BATCH)
