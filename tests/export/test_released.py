"""Writing the released layout: names, keys and positions are the same as those read."""

import json

import pytest
import torch
from safetensors.torch import load_file

from glm2core.cli.main import main
from glm2core.errors import UserError
from glm2core.export.released import export_released
from glm2core.model.adapters import load_tuned
from glm2core.model.loading import load_model
from glm2core.model.rope import RopeScaling
from tests.cli.conftest import make_adapter, make_full
from tests.export.networks import released_folder
from tests.model.released_layout import MEMBERS, released_config


def silent(_: str) -> None:
    pass


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_comes_back_as_it_was(member, tokenizer, tmp_path):
    folder = released_folder(tmp_path / member, member, tokenizer)
    export_released(folder, tmp_path / "out", notice=silent)
    given, written = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "out"))
    assert {key: written.get(key) for key in given} == given | {"quantization_bit": 0}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    before = {name: tensor for file in folder.glob("*.bin") for name, tensor in torch.load(file).items()}
    after = {
        name: tensor for file in (tmp_path / "out").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    assert set(index["weight_map"]) == set(after) == set(before)
    assert all(after[name].equal(before[name]) for name in before if "inv_freq" not in name)


def test_an_adapter_is_merged_and_what_runs_it_is_named(tokenizer, tmp_path, capsys):
    base = released_folder(tmp_path / "chatglm2-6b-32k", "chatglm2-6b-32k", tokenizer)
    (base / "modeling_chatglm.py").write_text("position / rope_ratio")
    folder = make_adapter(tmp_path / "lora", tokenizer, base, "lora")
    assert main(["export", str(folder), str(tmp_path / "out"), "--format", "released", "--dtype", "float32"]) == 0
    told = capsys.readouterr().out
    assert "configuration_chatglm.py, quantization.py, tokenization_chatglm.py of chatglm2-6b-32k" in told
    # the base beside the adapter has no code, so nothing is copied from there
    merged = load_tuned(folder, dtype=torch.float32, notice=silent).merge_and_unload().state_dict()
    written = load_model(tmp_path / "out", dtype=torch.float32, notice=silent).state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(written[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("knows", [True, False])
def test_code_is_copied_only_where_it_knows_the_scaling(knows, tokenizer, tmp_path):
    folder = released_folder(tmp_path / "chatglm2-6b-32k", "chatglm2-6b-32k", tokenizer)
    (folder / "modeling_chatglm.py").write_text("self.rope_ratio" if knows else "plain positions")
    missing = export_released(folder, tmp_path / "out", notice=silent)
    assert (tmp_path / "out" / "modeling_chatglm.py").is_file() == knows
    assert ("modeling_chatglm.py" in missing) != knows


def test_full_weights_of_the_pipeline(tokenizer, tmp_path):
    folder = make_full(tmp_path / "model", tokenizer, rope=RopeScaling("linear", 4.0))
    export_released(folder, tmp_path / "out", notice=silent)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_ratio"] == 4
    assert set(released_config("chatglm2-6b-32k")) - {
        "prefix_projection",
        "interleaved_qkv",
        "transformers_version",
    } <= {*written}


@pytest.mark.parametrize("rope_type", ["ntk", "yarn"])
def test_a_scaling_that_the_released_code_lacks_is_refused(rope_type, tokenizer, tmp_path):
    folder = make_full(tmp_path / "model", tokenizer, rope=RopeScaling(rope_type, 4.0))
    with pytest.raises(
        UserError, match=r"the released chatglm2 code can't compute\. That code divides positions by rope_ratio"
    ):
        export_released(folder, tmp_path / "out", notice=silent)
    assert not (tmp_path / "out").exists()
