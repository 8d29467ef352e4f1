"""Which params differ from their defaults."""

from glm2core.params import Params, changed, flatten, load_params
from tests.test_architecture import ROOT


def test_what_was_set_is_named_with_its_default_and_nothing_else() -> None:
    params = load_params(ROOT / "params.yaml")
    before = changed(params)
    train = params.train.model_copy(update={"seed": params.train.seed + 1})
    after = changed(params.model_copy(update={"train": train}))
    default = type(train).model_fields["seed"].default
    assert after == before | {"train.seed": (params.train.seed + 1, default)}
    assert set(before) < set(flatten(params))
    assert all(value != known for value, known in before.values())


def test_defaults_alone_leave_only_what_has_none() -> None:
    params = load_params(ROOT / "params.yaml")
    sections = {name: getattr(params, name) for name in ("train", "tracking")}
    plain = {name: type(section)() for name, section in sections.items()}
    assert [key for key in changed(Params.model_copy(params, update=plain)) if key.split(".")[0] in plain] == []
