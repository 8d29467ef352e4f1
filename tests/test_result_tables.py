"""The two tables that a run ends with."""

from glm2core.result_tables import answers_table, result_note, retrieval_table


def test_each_task_has_a_line_for_each_model_and_a_column_for_each_length() -> None:
    metrics = {
        "retrieval_lines_512": 1.0,
        "retrieval_lines_32768": 0.965,
        "base_retrieval_lines_512": 0.99,
        "retrieval_vt_2_512": 0.5,
        "retrieval_accuracy": 0.9,
        "test_loss": 2.0,
    }
    header, lines = retrieval_table(metrics)
    assert header == ["", "512", "32,768"]
    assert lines == [["lines, base", "99", "–"], ["lines, tuned", "100", "96"], ["vt_2, tuned", "50", "–"]]


def test_answers_stand_before_and_after_in_all_and_for_generated_sources() -> None:
    scores = {"exact_match": 87.5, "base_exact_match": 0.0, "rouge_l": 90.04, "answers_loss": 0.254}
    of_a_file = {"exact_match": 0.0}
    metrics = {**scores, "by_source": {"analysis": scores, "data/raw/a.json": of_a_file}}
    _, lines = answers_table(metrics)
    assert lines == [["all", "0 -> 88", "90.0", "–", "0.25"], ["analysis", "0 -> 88", "90.0", "–", "0.25"]]
    assert answers_table({"retrieval_lines_512": 1.0})[1] == []


def test_the_note_is_markdown_and_leaves_out_what_was_not_asked() -> None:
    note = result_note({"retrieval_lines_512": 1.0, "base_retrieval_lines_512": 0.5})
    assert note.splitlines()[2:] == ["|  | 512 |", "| --- | --- |", "| lines, base | 50 |", "| lines, tuned | 100 |"]
    assert result_note({}) == ""
