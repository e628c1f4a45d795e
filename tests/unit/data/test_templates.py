"""Chat templates: arguments, roles, tools, prefills, and programs that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from questions import load_prompts, tokenize_prompts
from unit.data.test_data_tokenize import SPECIAL, TEMPLATE, build_tokenizer

from megatron_resrl.data.prompts import PromptRecord
from megatron_resrl.errors import InputError

CHATML = (
    "{% for m in messages %}{{ '<start>' + m.role + '\n' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "<start>call {{ c.function.name }} {{ c.function.arguments.a + 1 }}<end>{% endfor %}"
    "{% else %}<start>{{ m.content }}<end>{% endif %}{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "plus"}}


def ask(
    *messages: tuple[str, str], tools: list[Any] | None = None, place: str = "a.jsonl, line 7"
) -> PromptRecord:
    chat = [{"role": role, "content": content} for role, content in messages]
    return PromptRecord(6, chat, "2", "sums", {}, tools=tools, place=place)


def rendered(record: PromptRecord, template: Any = CHATML, **settings: Any) -> str:
    tokenizer = build_tokenizer(template)
    (prompt,) = tokenize_prompts([record], tokenizer, max_prompt_length=500, **settings).prompts
    return "".join(tokenizer.convert_ids_to_tokens(prompt.token_ids))


def refused(record: PromptRecord, template: Any = CHATML, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        rendered(record, template, **settings)
    return str(caught.value)


def test_chat_names_the_row_that_ends_with_the_assistant() -> None:
    said = refused(ask(("user", "1+1?"), ("assistant", "it is")))
    assert said.startswith("a.jsonl, line 7: its last message is the assistant's; take it out if")
    assert "data.continue_final_message to true" in said


def test_chat_continues_a_prefill_as_transformers_does() -> None:
    record = ask(("user", "1+1?"), ("assistant", "it is"))
    theirs = build_tokenizer(CHATML).apply_chat_template(
        record.messages, tokenize=False, continue_final_message=True
    )
    assert theirs == "<start>user\n1+1?<end><start>assistant\nit is"
    assert rendered(record, continue_final_message=True) == theirs


def test_chat_mixes_prompts_with_and_without_prefill() -> None:
    said = rendered(ask(("user", "1+1?")), continue_final_message=True)
    assert said == "<start>user\n1+1?<end><start>assistant\n"


def test_chat_refuses_to_continue_a_tool_call() -> None:
    record = ask(("user", "1+1?"))
    record.messages.append({"role": "assistant", "content": None, "tool_calls": [TOOL]})
    said = refused(record, WITH_TOOLS, continue_final_message=True)
    assert "refuses a.jsonl, line 7, with roles user, assistant: " in said


def test_chat_renders_tools_and_their_calls() -> None:
    call = {"function": {"name": "plus", "arguments": {"a": 1}}}
    record = ask(("user", "1+1?"), tools=[TOOL])
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    record.messages.extend([calling, {"role": "tool", "content": "2"}])
    assert rendered(record, WITH_TOOLS) == (
        "plus <start>1+1?<end><start>call plus 2<end><start>2<end>"
    )


def test_chat_uses_the_template_for_tools() -> None:
    templates = {"default": CHATML, "tool_use": WITH_TOOLS}
    assert rendered(ask(("user", "1+1?"), tools=[TOOL]), templates).startswith("plus <start>1")
    assert rendered(ask(("user", "1+1?")), templates).startswith("<start>user\n1+1?")


def test_chat_names_tools_that_the_template_hides() -> None:
    said = refused(ask(("user", "1+1?"), tools=[TOOL]))
    assert said.startswith("a.jsonl, line 7: it has tools, which the chat template of 'models/tin")
    assert "data.tools_key to null" in said


@pytest.mark.parametrize(
    ("role", "hint"),
    [
        ("human", "did you mean user?"),
        ("gpt", "did you mean assistant?"),
        ("usr", "did you mean user?"),
        ("narrator", "roles are system, developer, user, assistant, tool, function"),
    ],
)
def test_chat_names_foreign_roles(role: str, hint: str) -> None:
    said = refused(ask(("system", "be brief"), (role, "1+1?")))
    assert said == (
        "a.jsonl, line 7: the chat template of 'models/tiny' does not know the role "
        f"'{role}'; {hint}"
    )


def test_chat_knows_a_role_that_the_template_names() -> None:
    template = CHATML.replace("m.role +", "('user' if m.role == 'narrator' else m.role) +")
    assert rendered(ask(("narrator", "1+1?")), template).startswith("<start>user\n1+1?")


def test_chat_names_messages_that_the_template_omits() -> None:
    only_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    said = refused(ask(("system", "be brief"), ("user", "1+1?")), only_users)
    assert said.startswith(
        "a.jsonl, line 7: the chat template of 'models/tiny' leaves messages with the role 'system'"
        " out"
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if tools | length > 0 %}9{% endif %}{{ messages[0].content }}", "TypeError: object"),
        ("{{ messages[0].content + 1 }}", "TypeError: "),
        ("{{ 1 // (messages | length - 1) }}", "ZeroDivisionError: "),
        ("{{ messages[5].content.text }}", "list object has no element 5"),
        ("{{ raise_exception('no such thing') }}", "no such thing"),
        ("{{ {}['a'].b }}", "has no attribute 'a'"),
    ],
)
def test_chat_names_row_and_roles_where_a_template_fails(template: str, said: str) -> None:
    message = refused(ask(("user", "1+1?")), template)
    start = "the chat template of 'models/tiny' refuses a.jsonl, line 7, with roles user: "
    assert message.startswith(start)
    assert said in message


def test_chat_names_a_template_that_is_none() -> None:
    said = refused(
        ask(("user", "1+1?")), "{% for %}", chat_template_kwargs={"enable_thinking": False}
    )
    assert said.startswith("the chat template of 'models/tiny' is no valid template: ")
    said = refused(ask(("user", "1+1?")), "{% for %}")
    assert "the chat template of 'models/tiny' " in said


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"enable_thinkin": False}, "; did you mean enable_thinking?"),
        ({"enable_thinking:false": None}, "; put a blank after the colon"),
        ({"padding": True}, ""),
        ({"raise_exception": 1}, ""),
        ({"range": 1}, ""),
    ],
)
def test_chat_names_arguments_unknown_to_the_template(given: dict[str, Any], hint: str) -> None:
    (name,) = given
    template = TEMPLATE + "{% for i in range(0) %}{% break %}{% endfor %}{{ bos_token if 0 }}"
    template = template.replace(
        "{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}"
    )
    assert refused(ask(("user", "1+1?")), template, chat_template_kwargs=given) == (
        f"data.chat_template_kwargs = {given!r}: the chat template of 'models/tiny' does not know "
        f"{name!r}; it knows enable_thinking{hint}"
    )
    assert rendered(
        ask(("user", "1+1?")), template, chat_template_kwargs={"enable_thinking": False}
    ).endswith("no thinking")


def test_chat_names_the_row_of_a_token_the_model_lacks() -> None:
    said = refused(ask(("user", "1+1?")), vocab_size=len(SPECIAL))
    assert said.startswith("a.jsonl, line 7: its token '")
    assert said.endswith(
        "and the model's vocab_size is 5; use the tokenizer of this model, or resize its embedding"
    )
    assert rendered(ask(("user", "1+1?")), vocab_size=1000)


def test_chat_names_half_a_surrogate_pair(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "1+1?", "answer": 2}\n')
    with pytest.raises(InputError, match=r"data\.system_prompt: character 3 is half of"):
        load_prompts(tmp_path / "a.jsonl", system_prompt="be \ud835")
