"""Which tokens of a conversation are learned, against masks made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chat_templates import BOS, FAMILIES, family_tokenizer

from megatron_resrl.data.assistant_turns import TurnTokens
from megatron_resrl.data.conversations import Conversation, ExactTokens
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import InputError

SYSTEM = ("system", "Be brief.")
SUMS = (("user", "1+1?"), ("assistant", "2"), ("user", "2+2?"), ("assistant", "It is\n\n4"))
THOUGHTS = (
    ("user", "1+1?"),
    ("assistant", "<think>\none more\n</think>\n\n2"),
    ("user", "2+2?"),
    ("assistant", "<think>\ntwice\n</think>\n\n4"),
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)


def conversation(*messages: tuple[str, str], learned: tuple[int, ...] = (), **options: Any):
    chat = [{"role": role, "content": content} for role, content in messages]
    speaking = tuple(n for n, (role, _) in enumerate(messages) if role == "assistant")
    record = PromptRecord(3, chat, None, "a", {}, place="a.jsonl, line 4", **options)
    return Conversation(record, learned or speaking)


def shown(tokenizer: Any, chat: Conversation, **arguments: Any) -> list[str]:
    """The text of each sequence, with what is learned between « and »."""
    texts = []
    for marked in TurnTokens(tokenizer, arguments, len(tokenizer)).sequences(chat):
        pairs = zip((*marked.token_ids, None), (*marked.targets, False), strict=True)
        text, inside = "", False
        for token, learned in pairs:
            text += "«" if learned and not inside else "»" if inside and not learned else ""
            text += tokenizer.convert_ids_to_tokens(token) if token is not None else ""
            inside = learned
        texts.append(text)
    return texts


HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
BY_HAND = {
    "llama3": [
        BOS
        + HEADER.format("user")
        + "1+1?<|eot_id|>"
        + HEADER.format("assistant")
        + "«2<|eot_id|>»"
        + HEADER.format("user")
        + "2+2?<|eot_id|>"
        + HEADER.format("assistant")
        + "«It is\n\n4<|eot_id|>»"
    ],
    "mistral": [BOS + "[INST] 1+1?[/INST]« 2</s>»[INST] 2+2?[/INST]« It is\n\n4</s>»"],
    "qwen2.5": [
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n«2<|im_end|>»\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n«It is\n\n4<|im_end|>»"
    ],
    # An earlier turn stands without its empty thinking, and is learned with it, apart.
    "qwen3": [
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\n\n</think>\n\nIt is\n\n4<|im_end|>»",
        "<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\n\n</think>\n\n2<|im_end|>»",
    ],
}
BY_HAND["smollm2"] = BY_HAND["qwen2.5"]


@pytest.mark.parametrize("family", FAMILIES)
def test_turn_tokens_equal_masks_made_by_hand(family):
    assert shown(family_tokenizer(*FAMILIES[family]), conversation(*SUMS)) == BY_HAND[family]


def test_turn_tokens_learn_the_thinking_of_each_turn_once():
    assert shown(family_tokenizer(*FAMILIES["qwen3"]), conversation(*THOUGHTS)) == [
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\ntwice\n</think>\n\n4<|im_end|>»",
        "<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\none more\n</think>\n\n2<|im_end|>»",
    ]


def test_turn_tokens_leave_an_empty_thinking_to_the_prompt():
    tokenizer = family_tokenizer(*FAMILIES["qwen3"])
    (text,) = shown(tokenizer, conversation(*SUMS[:2]), enable_thinking=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n«2<|im_end|>»")


def test_turn_tokens_mask_system_and_tool_messages():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    chat = conversation(SYSTEM, ("user", "1+1?"), ("assistant", ""), ("tool", "2"), SUMS[1])
    chat.record.messages[2] = call
    assert shown(family_tokenizer(*FAMILIES["qwen2.5"]), chat) == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        '<|im_start|>assistant\n«<tool_call>\n{"name": "add"}\n</tool_call><|im_end|>»\n'
        "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n«2<|im_end|>»"
    ]


def test_turn_tokens_learn_chosen_messages_only():
    (text,) = shown(family_tokenizer(*FAMILIES["mistral"]), conversation(*SUMS, learned=(3,)))
    assert text == BOS + "[INST] 1+1?[/INST] 2</s>[INST] 2+2?[/INST]« It is\n\n4</s>»"


def test_turn_tokens_end_with_the_last_message_learned():
    (text,) = shown(family_tokenizer(*FAMILIES["mistral"]), conversation(*SUMS, learned=(1,)))
    assert text == BOS + "[INST] 1+1?[/INST]« 2</s>»"


@pytest.mark.parametrize("learned", [(1, 3), (3,)])
def test_turn_tokens_follow_the_marks_of_a_template(learned):
    tokenizer = family_tokenizer(GENERATION, *FAMILIES["qwen2.5"][1:])
    first = "«2<|im_end|>»" if 1 in learned else "2<|im_end|>"
    assert shown(tokenizer, conversation(*SUMS, learned=learned)) == [
        f"<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n{first}\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n«It is\n\n4<|im_end|>»"
    ]


def test_turn_tokens_leave_a_token_of_both_sides_to_the_prompt():
    # The line end of the header and the content's are one token, of which the model wrote half.
    chat = conversation(("user", "1+1?"), ("assistant", "\n2"))
    (text,) = shown(family_tokenizer(*FAMILIES["qwen2.5"]), chat)
    assert text.endswith("<|im_start|>assistant\n\n«2<|im_end|>»")


def test_turn_tokens_refuse_a_prompt_that_no_turn_continues():
    tokenizer = family_tokenizer(*FAMILIES["qwen2.5"])
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    with pytest.raises(InputError) as caught:
        shown(tokenizer, conversation(*SUMS))
    assert "a.jsonl, line 4: the chat template of 'models/tiny' does not show" in str(caught.value)
    assert "{% generation %}" in str(caught.value)


def test_turn_tokens_refuse_marks_that_are_not_one_a_turn():
    tokenizer = family_tokenizer(GENERATION, *FAMILIES["qwen2.5"][1:])
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}<|im_end|>{% endgeneration %}",
        "{{ m['content'] }}{% endgeneration %}-{% generation %}<|im_end|>{% endgeneration %}",
    )
    with pytest.raises(InputError, match=r"marks 4 turns of the assistant .* and there are 2"):
        shown(tokenizer, conversation(*SUMS))


def test_turn_tokens_refuse_an_unknown_role():
    with pytest.raises(InputError, match="does not know the role 'human'; did you mean user"):
        shown(family_tokenizer(*FAMILIES["llama3"]), conversation(("human", "1+1?"), SUMS[1]))


def test_turn_tokens_refuse_tokens_that_the_model_lacks():
    tokenizer = family_tokenizer(*FAMILIES["llama3"])
    with pytest.raises(InputError, match=r"a\.jsonl, line 4: it has the token id"):
        TurnTokens(tokenizer, {}, 10).sequences(conversation(*SUMS))


def test_turn_tokens_of_exact_tokens_need_no_template():
    tokenizer = family_tokenizer(*FAMILIES["llama3"])
    tokenizer.chat_template = None
    turns = TurnTokens(tokenizer, {}, len(tokenizer))
    exact = ExactTokens((5, 6), (7, 8), (True, False))
    (marked,) = turns.sequences(replace(conversation(*SUMS), token_ids=exact))
    assert marked == ((5, 6, 7, 8), [False, False, True, False])
    with pytest.raises(InputError, match="'models/tiny' has no chat template"):
        turns.sequences(conversation(*SUMS))
