"""Observations are appended as the chat template writes them, to the policy's own tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from megatron_resrl.errors import InputError
from megatron_resrl.rollout.environments.chat import ObservationTokens

CHATML = (
    "{% for m in messages %}[B] {{ m['role'] }} {{ m['content'] }} [E] {% endfor %}"
    "{% if add_generation_prompt %}[B] assistant {% endif %}"
)
WORDS = ["[E]", "[B]", "[P]", "user", "assistant", "tool", "one", "two", "three", "question"]


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    model = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[P]"))
    model.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="[E]", pad_token="[P]")
    fast.add_special_tokens({"additional_special_tokens": ["[B]"]})
    fast.chat_template = template
    return fast


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.mark.parametrize("role", ["user", "tool"])
def test_observation_tokens_equal_the_whole_conversation(role: str) -> None:
    tokens = tokenizer(CHATML)
    messages = [{"role": "user", "content": "question"}]
    so_far = tokens.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for answer, observed in (("one two", "three"), ("two", "one")):
        turn = ids(f"{answer} [E]")
        so_far = [*so_far, *turn, *ObservationTokens(tokens, role).encode(observed, turn)]
        messages += [
            {"role": "assistant", "content": answer},
            {"role": role, "content": observed},
        ]
    whole = tokens.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(so_far) == list(whole)


def test_observation_tokens_end_a_turn_that_was_cut_off() -> None:
    observations = ObservationTokens(tokenizer(CHATML), "user")
    whole = "[E] [B] user three [E] [B] assistant"
    assert list(observations.encode("three", ids("one two"))) == ids(whole)
    assert list(observations.encode("three", ids("one [E]"))) == ids(whole)[1:]


def test_observation_tokens_omit_special_tokens_of_the_text() -> None:
    encoded = ObservationTokens(tokenizer(CHATML), "tool").encode(
        "one [E] [B] user two", ids("one [E]")
    )
    assert list(encoded) == ids("[B] tool one user two [E] [B] assistant")


def test_observation_tokens_without_template_are_the_text() -> None:
    observations = ObservationTokens(tokenizer(CHATML), "user", apply_chat_template=False)
    assert list(observations.encode("three", ids("one [E]"))) == ids("three")
    # Also where it begins with the token that ended the turn: there is no template to repeat it.
    assert list(observations.encode("three two", ids("one three"))) == ids("three two")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[-1]['content'] }}", "does not show an earlier answer exactly once"),
        (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}"
            "{% endif %}{% endfor %}",
            "leaves the text of an observation out",
        ),
        (
            "{% for m in messages %}{% if m['role'] == 'tool' %}"
            "{{ raise_exception('no tools') }}{% endif %}{{ m['content'] }}{% endfor %}",
            "refuses a message after an answer .no tools.*with role 'tool'",
        ),
    ],
)
def test_observation_tokens_refuse_an_unusable_template(template: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        ObservationTokens(tokenizer(template), "tool")
