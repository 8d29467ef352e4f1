"""Packed questions on one shared context get the same answers as each question alone."""

from collections.abc import Sequence

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model

from glm2core.evaluation.cases import Case, Question
from glm2core.evaluation.generation import answer_questions, read_context
from glm2core.evaluation.retrieval import answer_case, reading_costs
from glm2core.evaluation.retrieval_tables import by_length, retrieval_rows
from glm2core.evaluation.scores import effective_length, score
from glm2core.evaluation.tasks import GeneratedCases
from glm2core.model import ChatGLM2ForCausalLM
from glm2core.model.adapters import attach_prefix_length
from glm2core.model.cost import Cost
from glm2core.model.rope import yarn_rope
from glm2core.text.chat_format import ChatFormat
from glm2core.text.tokenizer import SpTokenizer
from tests.evaluation.conftest import random_model, tiny_config

NEVER: frozenset[int] = frozenset()
CONTEXT = [(7 * i * i + 3 * i) % 500 + 3 for i in range(150)]
QUESTIONS = [[(11 * q + 5 * i) % 500 + 3 for i in range(3 + q)] for q in range(6)]


def alone(model: torch.nn.Module, question: Sequence[int], steps: int) -> list[int]:
    """Greedy, one question, the whole sequence recomputed for each token, no cache."""
    ids = [*CONTEXT, *question]
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-steps:]


def packed(model: torch.nn.Module, chunk: int, steps: int) -> list[list[int]]:
    return answer_questions(read_context(model, CONTEXT, chunk), QUESTIONS, steps, NEVER)


@pytest.mark.parametrize("chunk", [150, 64])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_questions_equal_each_alone(model: ChatGLM2ForCausalLM, chunk: int, attention: str) -> None:
    model.set_attn_implementation(attention)
    answers = packed(model, chunk, 8)
    assert answers == [alone(model, question, 8) for question in QUESTIONS]
    assert len({tuple(answer) for answer in answers}) > 1
    model.set_attn_implementation("sdpa")


def test_yarn_and_prefixes_too(tokenizer: SpTokenizer) -> None:
    for changes in ({"rope_parameters": yarn_rope(4, 64)}, {"pre_seq_len": 5}):
        model = random_model(tiny_config(tokenizer, **changes))
        assert packed(model, 64, 4) == [alone(model, question, 4) for question in QUESTIONS]


def test_a_prefix_of_peft_is_read_once(tokenizer: SpTokenizer) -> None:
    config = tiny_config(tokenizer)
    prefix = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=6,
        num_layers=config.num_layers,
        num_attention_heads=config.multi_query_group_num,
        token_dim=config.multi_query_group_num * config.kv_channels,
    )
    base = random_model(config)
    without = packed(base, 64, 4)
    attach_prefix_length(base, prefix)
    model = get_peft_model(base, prefix).eval()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.normal_()
    answers = packed(model, 64, 4)
    assert answers == [alone(model, question, 4) for question in QUESTIONS]
    assert answers != without


def test_answers_stop_each_at_its_own_stop_token(model: ChatGLM2ForCausalLM) -> None:
    free = packed(model, 150, 8)
    stop = frozenset({free[0][3]})
    stopped = answer_questions(read_context(model, CONTEXT, 150), QUESTIONS, 8, stop)
    for whole, cut in zip(free, stopped, strict=True):
        place = next((i for i, token in enumerate(whole) if token in stop), len(whole))
        assert cut == whole[:place]


@pytest.mark.parametrize("template", ["chatglm2", "chatglm3"])
def test_shared_ids_and_rest_are_the_whole_prompt(tokenizer: SpTokenizer, template: str) -> None:
    chat_format = ChatFormat(tokenizer, template)  # type: ignore[arg-type]
    asked = GeneratedCases(["lines", "multikey", "passkey"], [1500], contexts=1, questions=10, depths=5, seed=1)
    for case in asked.cases(chat_format.count_tokens):
        shared, tails = chat_format.encode_questions(case.context, [question.text for question in case.questions])
        for question, tail in zip(case.questions, tails, strict=True):
            message = {"role": "user", "content": case.context + question.text}
            assert [*shared, *tail] == tokenizer.prompt_ids([message], template)  # type: ignore[arg-type]
            assert tail
        if len(tails) > 1:
            assert len({tail[0] for tail in tails}) > 1  # nothing common is left to the questions
            assert max(map(len, tails)) < 60


def test_a_random_network_scores_at_chance(model: ChatGLM2ForCausalLM, tokenizer: SpTokenizer) -> None:
    chat_format = ChatFormat(tokenizer, "chatglm2")
    asked = GeneratedCases(["lines"], [600, 1000], contexts=4, questions=10, depths=5, seed=1234)
    answers = [
        answer
        for case in asked.cases(chat_format.count_tokens)
        for answer in answer_case(model, chat_format, case, prefill_chunk=4096, max_new_tokens=8)
    ]
    assert by_length(retrieval_rows(answers))["cases"].to_list() == [40, 40]
    assert score(answers).interval[0] <= answers[0].chance
    assert effective_length(answers) == 0


def test_longer_contexts_are_expected_to_hold_more_questions(tokenizer: SpTokenizer) -> None:
    generated = GeneratedCases(["lines", "vt"], [512, 4096], contexts=2, questions=10, depths=5, seed=0, shared=True)
    answered = Case("shared", 512, 0, "a record", (Question("?", 7, 0.5, False),) * 4, 0.0)
    config = tiny_config(tokenizer)
    short, long = (Cost(config, backward_factor=0).operations(torch.tensor([length]), 0) for length in (512, 4096))
    costs = reading_costs(config, generated, [], len, answered)
    assert costs == [short / 4] * 40 + [long / 20] * 40  # never more than the 20 questions that a context is to have
