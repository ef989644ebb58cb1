"""Packed, chunked, padded: always the same loss and the same gradients, and a leak between examples would show."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from cacherl.rollout.renderer import Example
from cacherl.train import token_loss
from cacherl.train.token_loss import Rows, chunked_nats, packed_row, padded_rows, summed_nats, trained_tokens

EXAMPLES = [
    Example(ids=(4, 5, 6, 7, 8), loss_mask=(0, 1, 1, 0, 1)),
    Example(ids=(1, 2, 3), loss_mask=(0, 0, 1)),
    Example(ids=(9, 9, 2, 6, 1, 30, 31), loss_mask=(0, 0, 1, 1, 1, 0, 1)),
]
CPU = torch.device("cpu")


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> Qwen3ForCausalLM:
    """Two layers, so that what leaks in the first is read in the second."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.3,
        attn_implementation=request.param,
    )
    return Qwen3ForCausalLM(config).double()


def loss_and_gradients(model: Qwen3ForCausalLM, *passes: Rows) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for rows in passes:
        nats = summed_nats(model, model.lm_head, rows)
        nats.backward()
        total += nats.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(model: Qwen3ForCausalLM) -> tuple[float, dict[str, Tensor]]:
    return loss_and_gradients(model, *(padded_rows([each], CPU) for each in EXAMPLES))


def assert_same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], atol=1e-6, rtol=0)


def test_packed_in_one_row_examples_have_the_loss_and_the_gradients_they_have_apart(model: Qwen3ForCausalLM) -> None:
    assert_same(loss_and_gradients(model, packed_row(EXAMPLES, CPU)), apart(model))


def test_padded_side_by_side_they_have_them_as_well(model: Qwen3ForCausalLM) -> None:
    assert_same(loss_and_gradients(model, padded_rows(EXAMPLES, CPU)), apart(model))


def test_without_the_border_in_the_positions_the_packed_loss_would_be_another(model: Qwen3ForCausalLM) -> None:
    row = packed_row(EXAMPLES, CPU)
    assert row.positions is not None
    leaking = Rows(ids=row.ids, wanted=row.wanted, positions=torch.arange(row.ids.shape[1])[None])
    assert abs(loss_and_gradients(model, leaking)[0] - apart(model)[0]) > 0.1


def test_what_stands_in_one_example_of_a_row_does_not_move_the_loss_of_the_others(model: Qwen3ForCausalLM) -> None:
    silent = Example(ids=(11, 12, 13), loss_mask=(0, 0, 0))
    other = Example(ids=(20, 21, 22), loss_mask=(0, 0, 0))
    before = loss_and_gradients(model, packed_row([silent, EXAMPLES[0]], CPU))
    assert_same(before, loss_and_gradients(model, packed_row([other, EXAMPLES[0]], CPU)))


def test_the_first_token_of_an_example_is_never_guessed_from_the_end_of_its_neighbour(model: Qwen3ForCausalLM) -> None:
    first_wanted = Example(ids=(4, 5, 6), loss_mask=(1, 1, 1))
    row = packed_row([EXAMPLES[1], first_wanted], CPU)
    assert row.wanted.tolist() == [[False, False, True, False, True, True]]
    assert trained_tokens(first_wanted) == 2


def test_a_row_starts_its_positions_anew_with_every_example() -> None:
    row = packed_row(EXAMPLES[:2], CPU)
    assert row.ids.tolist() == [[4, 5, 6, 7, 8, 1, 2, 3]]
    assert row.positions is not None
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]


def test_only_wanted_tokens_go_through_the_vocabulary(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Size] = []
    plain = chunked_nats
    monkeypatch.setattr(
        token_loss, "chunked_nats", lambda head, hidden, *rest: asked.append(hidden.shape) or plain(head, hidden, *rest)
    )
    summed_nats(model, model.lm_head, padded_rows(EXAMPLES, CPU))
    assert asked == [torch.Size([3 + 1 + 4, 32])]


def test_the_head_is_itself_again_after_the_loss_and_after_an_error(model: Qwen3ForCausalLM) -> None:
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    summed_nats(model, model.lm_head, padded_rows(EXAMPLES, CPU))
    with pytest.raises(IndexError):
        summed_nats(model, model.lm_head, padded_rows([Example(ids=(99, 99), loss_mask=(0, 1))], CPU))
    assert torch.equal(model(ids).logits, before)
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 8])
def test_in_chunks_the_loss_and_its_gradients_are_those_of_all_logits_at_once(chunk: int) -> None:
    torch.manual_seed(1)
    head = torch.nn.Linear(6, 11, dtype=torch.double)
    hidden = torch.randn(8, 6, dtype=torch.double, requires_grad=True)
    labels = torch.randint(0, 11, (8,))
    torch.nn.functional.cross_entropy(head(hidden).float(), labels, reduction="sum").backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    expected = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    nats = chunked_nats(head, hidden, labels, chunk)
    nats.backward()
    by_hand = -torch.log_softmax(head(hidden), -1)[torch.arange(8), labels].sum()
    assert nats.item() == pytest.approx(by_hand.item(), abs=1e-5)
    torch.testing.assert_close(hidden.grad, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(head.weight.grad, expected[1], atol=1e-6, rtol=0)


def test_never_more_than_a_chunk_of_logits_is_kept_for_the_backward_pass() -> None:
    head = torch.nn.Linear(4, 1000, bias=False)
    hidden = torch.randn(64, 4, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_nats(head, hidden, torch.zeros(64, dtype=torch.long), 8)
    assert sum(kept) < 8 * 1000 + 64 * 8
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_nats(head, hidden, torch.zeros(64, dtype=torch.long), 64)
    assert sum(kept) >= 64 * 1000  # the measure would see them


def test_a_pass_that_teaches_nothing_has_a_loss_and_gradients_of_zero(model: Qwen3ForCausalLM) -> None:
    total, gradients = loss_and_gradients(model, padded_rows([Example(ids=(7,), loss_mask=(0,))], CPU))
    assert total == 0.0
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    assert all(gradient.eq(0).all() for gradient in gradients.values())
