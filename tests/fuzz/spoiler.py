"""Model folders made hostile: values, tensors, files, pickles and tokenizers that no owner of a model would write."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

CONFIG = {
    "num_layers": 2,
    "padded_vocab_size": 512,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "seq_length": 256,
    "family": "chatglm2",
}
ODD: list[Any] = [10**9, 10**30, 10**400, 1e9, -1, 0, 1, 2, 1.5, float("nan"), float("inf"), True, False, None, "", "x"]
ODD += ["../../x", "/dev/zero", "a\0b", "\ud800", "~nobody/x", "(a+)+$", "(.*)*(.*)*x", "9" * 5000, [], {}, [1], ["x"]]
ODD += [{"x": 1}, [[]], {"": None}, [10**9] * 1000, {"(a+)+$": 4}, "chatglm3", "evil.Code", [0, 10**9]]
CONFIG_KEYS = [*CONFIG, "layernorm_epsilon", "add_qkv_bias", "rope_parameters", "rope_ratio", "pre_seq_len", "dtype"]
CONFIG_KEYS += ["prefix_projection", "eos_token_id", "pad_token_id", "bos_token_id", "initializer_range", "use_cache"]
CONFIG_KEYS += ["tie_word_embeddings", "quantization_bit", "architectures", "model_type", "torch_dtype", "rmsnorm"]
CONFIG_KEYS += ["_name_or_path", "hidden_dropout", "num_hidden_layers", "vocab_size", "head_dim", "id2label"]
CONFIG_KEYS += [
    "attribute_map",
    "__class__",
    "is_encoder_decoder",
    "pruned_heads",
    "rope_scaling",
    "transformers_version",
]
ROPE_KEYS = ["rope_type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"]
ROPE_KEYS += ["beta_fast", "beta_slow", "mscale", "attention_factor", "truncate"]
GENERATION_KEYS = ["max_length", "do_sample", "temperature", "top_k", "top_p", "eos_token_id", "cache_implementation"]
GENERATION_KEYS += ["custom_generate", "watermarking_config", "compile_config", "suppress_tokens", "bad_words_ids"]
GENERATION_KEYS += ["num_beams", "forced_bos_token_id", "stop_strings", "_from_model_config", "repetition_penalty"]
TOKENIZER_KEYS = ["prompt_template", "pair_format", "chat_template", "name_or_path", "added_tokens_decoder"]
TOKENIZER_KEYS += ["tokenizer_class", "auto_map"]
ADAPTER_KEYS = ["r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_pattern", "peft_type"]
ADAPTER_KEYS += ["rank_pattern", "alpha_pattern", "base_model_name_or_path", "auto_mapping", "bias", "modules_to_save"]
ADAPTER_KEYS += [
    "megatron_core",
    "init_lora_weights",
    "loftq_config",
    "task_type",
    "use_dora",
    "use_rslora",
    "revision",
]
ADAPTER_KEYS += ["layer_replication", "layers_to_transform", "fan_in_fan_out", "trainable_token_indices", "token_dim"]
ADAPTER_KEYS += ["target_parameters", "inference_mode", "runtime_config", "num_virtual_tokens", "prefix_projection"]
ADAPTER_KEYS += ["num_layers", "num_attention_heads", "encoder_hidden_size", "num_transformer_submodules"]
BASE_KEYS = ["path", "fingerprint", "bits", "family", "rope", "rope_type", "rope_factor", "rope_unit"]
# What must not reach transformers or peft, and must not keep a good folder from working.
IGNORED_KEYS = {
    "auto_map": {"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"},
    "trust_remote_code": True,
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "use_kernels": True,
    "transformers_weights": "../../evil.safetensors",
    "fusion_config": {"x": 1},
    "base_model_tp_plan": {"*": "x"},
    "sliding_window": -1,
    "output_attentions": True,
    "return_dict": False,
    "chunk_size_feed_forward": -3,
    "name_or_path": "/etc",
    "to_dict": 5,
    "problem_type": "x",
}

Change = Callable[[Path], bool]  # changes a folder; True = it must be refused now


class Code:
    """Unpickling this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


class Spoiler:
    """Changes to a folder, from a seed.

    Args:
        mark: the folder that code would make.
    """

    def __init__(self, seed: int, mark: Path) -> None:
        self.rng = random.Random(seed)
        self.mark = mark

    def change(self, folder: Path) -> tuple[str, bool]:
        """Spoil a folder; returns how, and whether it must be refused now."""
        is_adapter = (folder / "adapter_config.json").is_file()
        values = [self.config, self.config, self.tokenizer_config, self.generation, self.ignored, self.rope]
        damage = [self.damaged_file, self.damaged_file, self.damaged_file, self.odd_file, self.code, self.tokenizer]
        adapter = [self.adapter, self.adapter, self.adapter, self.base_reference, self.adapter_tensors]
        change: Change = self.rng.choice([*values, *damage, self.tensors, *(adapter * 3 if is_adapter else [])])
        if list(folder.glob("*.index.json")) and self.rng.random() < 0.5:
            change = self.index
        return change.__name__, change(folder)

    def config(self, folder: Path) -> bool:
        return self.set_value(self.network(folder) / "config.json", CONFIG_KEYS)

    def tokenizer_config(self, folder: Path) -> bool:
        return self.set_value(folder / "tokenizer_config.json", TOKENIZER_KEYS)

    def generation(self, folder: Path) -> bool:
        return self.set_value(self.network(folder) / "generation_config.json", GENERATION_KEYS)

    def adapter(self, folder: Path) -> bool:
        return self.set_value(folder / "adapter_config.json", ADAPTER_KEYS)

    def base_reference(self, folder: Path) -> bool:
        return self.set_value(folder / "base.json", BASE_KEYS)

    def rope(self, folder: Path) -> bool:
        file = self.network(folder) / "config.json"
        values = json.loads(file.read_text())
        rope = {**values["rope_parameters"], "rope_type": self.rng.choice(["default", "linear", "yarn", "dynamic"])}
        rope |= {"factor": 4.0} if self.rng.random() < 0.5 else {}
        rope |= {key: self.rng.choice(ODD) for key in self.rng.sample(ROPE_KEYS, self.rng.randint(0, 3))}
        file.write_text(json.dumps({**values, "rope_parameters": rope}))
        return False

    def ignored(self, folder: Path) -> bool:
        file = self.network(folder) / "config.json"
        chosen = self.rng.sample(sorted(IGNORED_KEYS), self.rng.randint(1, len(IGNORED_KEYS)))
        file.write_text(json.dumps({**json.loads(file.read_text()), **{key: IGNORED_KEYS[key] for key in chosen}}))
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(self.mark)!r})\n")
        return False

    def index(self, folder: Path) -> bool:
        [file] = folder.glob("*.index.json")
        weight_map: dict[Any, Any] = json.loads(file.read_text())["weight_map"]
        names = ["../whole/model.safetensors", str(folder / "config.json"), "/dev/stdin", ".", "..", "x" * 5000]
        name = self.rng.choice([*names, "tokenizer.model", "config.json", *ODD])
        whole: Any = {"weight_map": dict.fromkeys(weight_map, name)}
        if self.rng.random() < 0.3:
            whole = {"weight_map": weight_map | {self.rng.choice(list(weight_map)): name}}
        if self.rng.random() < 0.2:
            whole = self.rng.choice([{"weight_map": self.rng.choice(ODD)}, self.rng.choice(ODD)])
        file.write_text(json.dumps(whole))
        return True

    def tokenizer(self, folder: Path) -> bool:
        """A tokenizer.model that can be parsed, with something odd in it."""
        file = folder / "tokenizer.model"
        messages: Any = sentencepiece_model_pb2  # its classes are made at run time
        proto = messages.ModelProto.FromString(file.read_bytes())
        piece = self.rng.choice(proto.pieces)
        match self.rng.randint(0, 9):
            case 0:
                piece.piece = self.rng.choice(
                    ["", "[gMASK]", "</s>", "\n", "\u2581", "a" * 100_000, "<0x0A>", "\ufeff"]
                )
            case 1:
                piece.piece = self.rng.choice(proto.pieces).piece
            case 2:
                piece.score = self.rng.choice([float("nan"), float("inf"), -1e38])
            case 3:
                piece.type = self.rng.randint(1, 6)
            case 4:
                more = [messages.ModelProto.SentencePiece(piece=f"zz{i}", score=-1) for i in range(1000)]
                proto.pieces.extend(more)
            case 5:
                del proto.pieces[self.rng.randrange(len(proto.pieces)) :]
            case 6:
                proto.trainer_spec.model_type = self.rng.randint(1, 4)
            case 7:
                proto.trainer_spec.byte_fallback = False
            case 8:
                size = self.rng.choice([0, 16, 1 << 20]).to_bytes(4, "little")
                proto.normalizer_spec.precompiled_charsmap = size + self.rng.randbytes(self.rng.randint(0, 2000))
            case _:
                proto.normalizer_spec.add_dummy_prefix = self.rng.random() < 0.5
                proto.normalizer_spec.remove_extra_whitespaces = self.rng.random() < 0.5
        file.write_bytes(proto.SerializeToString())
        return False

    def tensors(self, folder: Path) -> bool:
        network = self.network(folder)
        files = [*network.glob("*.safetensors"), *network.glob("*.bin")]
        return self.change_tensors(self.rng.choice(sorted(file for file in files if "adapter" not in file.name)))

    def adapter_tensors(self, folder: Path) -> bool:
        return self.change_tensors(folder / "adapter_model.safetensors")

    def change_tensors(self, file: Path) -> bool:
        tensors = torch.load(file, weights_only=True) if file.suffix == ".bin" else load_file(file)
        name = self.rng.choice(sorted(tensors))
        odd: list[Any] = [torch.ones(3), torch.ones(1, 1, 1), tensors[name][:1], tensors[name].double() * float("nan")]
        odd += [tensors[name].long(), tensors[name].to(torch.complex64), tensors[name][..., None]]
        match self.rng.randint(0, 5):
            case 0:
                del tensors[name]
            case 1:
                tensors[name.replace("layers", "blocks") + "x"] = tensors.pop(name)
            case 2:
                tensors[self.rng.choice(["evil", "x" * 5000, name + ".evil", "\x1b[31m"])] = torch.ones(3)
            case 3 if file.suffix == ".bin":
                more = [tensors[name].to_sparse(), 5, "x", None, [1], torch.zeros(1).expand(1 << 20, 1 << 20)]
                tensors[self.rng.choice([name, 7])] = self.rng.choice([*more, tensors[name].to("meta")])
            case 4:
                tensors = {}
            case _:
                tensors[name] = self.rng.choice(odd)
        save_tensors(tensors, file)
        return True

    def code(self, folder: Path) -> bool:
        """A pickle that makes a folder, in every place where one could be read."""
        evil = Code(self.mark)
        network = self.network(folder)
        adapter = (folder / "adapter_config.json").is_file() and self.rng.random() < 0.5
        place = folder if adapter else network
        for file in [*place.glob("*.safetensors"), *place.glob("*.bin"), *place.glob("*.index.json")]:
            file.unlink()
        file = place / ("adapter_model.bin" if adapter else "pytorch_model.bin")
        match self.rng.randint(0, 3):
            case 0:
                torch.save({"transformer.output_layer.weight": evil}, file)
            case 1:
                torch.save({"x": torch.ones(2), "y": evil}, file, _use_new_zipfile_serialization=False)
            case 2:
                file.write_bytes(pickle.dumps(evil, protocol=self.rng.randint(0, 5)))
            case _:
                torch.save([evil], file)
                file.rename(file.with_suffix(".safetensors") if adapter else place / "model.safetensors")
        return True

    def damaged_file(self, folder: Path) -> bool:
        """Flipped, cut, doubled or replaced bytes of any file."""
        file = self.rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        data = bytearray(file.read_bytes())
        head = self.rng.choice([64, 600, 6000, len(data)])
        match self.rng.randint(0, 6):
            case 0:
                data = data[: self.rng.randrange(len(data) + 1)]
            case 1 if file.suffix == ".json":
                text = [
                    "[" * 100_000,
                    '{"a":' * 100_000,
                    "[]",
                    "5",
                    "null",
                    "\0",
                    "",
                    '{"a": ' + "9" * 5000 + "}",
                    '"x"',
                ]
                data = bytearray(self.rng.choice(text).encode())
            case 2:
                data = bytearray(self.rng.choice([b"\xff\xfe{", b"version https://git-lfs.github.com/spec/v1\n", b""]))
            case 3:
                data += data[: self.rng.randint(1, 300)]
            case _:
                for _ in range(self.rng.randint(1, 6)):
                    place = self.rng.randrange(min(head, len(data)))
                    place = place if self.rng.random() < 0.7 else len(data) - 1 - place  # a zip's list is at its end
                    data[place] = self.rng.randrange(256)
        file.write_bytes(data)
        return False

    def odd_file(self, folder: Path) -> bool:
        """No file, a pipe, a folder, a device or a link in circles where a file should be."""
        file = self.rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        file.unlink()
        match self.rng.randint(0, 5):
            case 0:
                os.mkfifo(file)
            case 1:
                file.mkdir()
            case 2:
                file.symlink_to("/dev/zero")
            case 3:
                file.symlink_to(file.name)
            case 4:
                file.touch()
                os.truncate(file, 1 << 28)
            case _:
                pass
        return False

    def network(self, folder: Path) -> Path:
        """The folder of the network: an adapter has its base beside it."""
        return folder / "base" if (folder / "base").is_dir() else folder

    def set_value(self, file: Path, keys: list[str]) -> bool:
        values = json.loads(file.read_text()) if file.is_file() else {}
        for key in self.rng.sample(keys, self.rng.choice([1, 1, 1, 2, 4])):
            values[key] = self.rng.choice(ODD)
            if self.rng.random() < 0.1:
                del values[key]
        file.write_text(json.dumps(values))
        return False
