"""Prompts as batches of named tensors."""

import pytest
import torch

from dds_train.diffusion import PromptTable
from dds_train.distillation import Condition, Prompt


def prompt(count: int, length: int, mask: bool = True) -> Prompt:
    tensors = {"text": torch.randn(count, length, 6), "pooled": torch.randn(count, 3)}
    return Prompt({**tensors, "mask": torch.ones(count, length, dtype=torch.bool)} if mask else tensors)


def test_cat_pads_text_and_mask_to_the_longest() -> None:
    short, long = prompt(2, 3), prompt(1, 5)
    both = Prompt.cat([short, long])
    assert len(both) == 3
    assert {name: tuple(tensor.shape) for name, tensor in both.items()} == {"text": (3, 5, 6), "pooled": (3, 3), "mask": (3, 5)}
    assert torch.equal(both["text"][:2, :3], short["text"])
    assert torch.equal(both["text"][2:], long["text"])
    assert both["mask"].tolist() == [[True] * 3 + [False] * 2] * 2 + [[True] * 5]
    assert both["mask"].dtype == torch.bool


def test_cat_refuses_padding_that_no_mask_leaves_out() -> None:
    with pytest.raises(ValueError, match=r"different lengths \(\[3, 5\]\) need a mask"):
        Prompt.cat([prompt(1, 3, mask=False), prompt(1, 5, mask=False)])


def test_rows_of_all_tensors() -> None:
    several = prompt(4, 3)
    for rows in (torch.tensor([2, 0, 2]), slice(1, 3), slice(None, None, 2)):
        for name, tensor in several[rows].items():
            assert torch.equal(tensor, several[name][rows])
    for name, tensor in several.repeat_interleave(2).items():
        assert torch.equal(tensor, several[name][[0, 0, 1, 1, 2, 2, 3, 3]])


def test_expand_does_not_copy() -> None:
    one = prompt(1, 3)
    for name, tensor in one.expand(1000).items():
        assert len(tensor) == 1000
        assert tensor.untyped_storage().data_ptr() == one[name].untyped_storage().data_ptr()


def test_precision_is_that_of_floating_point_tensors() -> None:
    half = prompt(2, 3).to(dtype=torch.float16)
    assert {name: tensor.dtype for name, tensor in half.items()} == {
        "text": torch.float16,
        "pooled": torch.float16,
        "mask": torch.bool,
    }
    assert {tensor.device.type for _, tensor in half.to("meta").items()} == {"meta"}


def test_a_condition_has_as_many_null_prompts_as_prompts() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        Condition(prompt(2, 3), prompt(1, 3))


def test_a_table_stays_on_the_cpu_wherever_its_encoder_is() -> None:
    class Encoder:
        device = torch.device("meta")

        def embed(self, text: str) -> Prompt:
            return prompt(1, 3)

    table = PromptTable.of(Encoder(), ["a cat", "a lion"])  # type: ignore[arg-type]
    assert {tensor.device.type for row in table.rows.values() for _, tensor in row.items()} == {"cpu"}
    condition = table.condition(["a cat", "a cat"], "a lion")
    for one in (condition.text, condition.null, condition.negative, table.embed(["a lion"])):
        assert one is not None
        assert {tensor.device.type for _, tensor in one.items()} == {"meta"}
