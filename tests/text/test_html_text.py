"""Texts in pages."""

from glm2core.text.html_text import cut, escaped


def test_tags_quotes_and_characters_that_move_or_turn_are_shown_as_text() -> None:
    assert escaped("<script>\"'&") == "&lt;script&gt;&quot;&#x27;&amp;"
    assert escaped("a\u202eb\x1b[31m\x00\n北京 é\ud800") == "a\\u202eb\\x1b[31m\\x00\n北京 é\\ud800"


def test_a_long_text_is_cut_with_a_mark() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("x" * 1503, 3) == "xxx … (1,500 more characters)"
