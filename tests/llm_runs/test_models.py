"""Loading, saving and converting models: GGUF files are made here, with the traps of the real one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_runs import models
from llm_runs.config import ModelConfig
from llm_runs.errors import InputError


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A Llama as llama.cpp stores it: float32, query and key rows reordered for its rotary embedding."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(backend["vocab"], key=backend["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in backend["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)

    def rotary(weight: torch.Tensor, heads: int) -> torch.Tensor:
        return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{a}.weight": f"blk.{layer}.{b}.weight" for a, b in parts.items()}
    for ours, theirs in names.items():
        weight = state[ours]
        if "q_proj" in ours:
            weight = rotary(weight, config.num_attention_heads)
        elif "k_proj" in ours:
            weight = rotary(weight, config.num_key_value_heads)
        writer.add_tensor(theirs, weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, Path]:
    """A GGUF file, and what it was converted to."""
    folder = tmp_path_factory.mktemp("gguf")
    path = folder / "tiny.gguf"
    write_gguf(path, models.load_model(tiny_folder), models.load_tokenizer(tiny_folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFERENCE_OBJECTIVES_HOME", str(folder / "home"))
        return path, Path(models.prepare(ModelConfig(name=str(path)), folder / "unused"))


def test_a_converted_model_is_the_same_function(converted: tuple[Path, Path], tiny_folder: Path) -> None:
    original, again = models.load_model(tiny_folder), models.load_model(converted[1])
    tokens = torch.randint(0, original.config.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # rms_norm_eps differs (Llama's default is 1e-6), so compare with the original under the stored one
        for module in original.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = 1e-5
        torch.testing.assert_close(again(tokens).logits, original(tokens).logits, rtol=0, atol=1e-5)


def test_a_converted_model_is_plain_safetensors(converted: tuple[Path, Path]) -> None:
    config = json.loads((converted[1] / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["rms_norm_eps"] == 1e-5  # not the 9.999999747e-06 of float32
    assert (converted[1] / "model.safetensors").is_file()
    assert not list(converted[1].glob("*.bin"))


def test_a_converted_tokenizer_splits_digits_and_knows_its_limits(
    converted: tuple[Path, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    again = models.load_tokenizer(converted[1])
    text = "The film of 1967 was great, 10 of 10!"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == text
    assert again.model_max_length == 256
    assert again.padding_side == "left"
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_special_tokens_are_those_of_the_file_whatever_the_loader_guesses(
    converted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = models.AutoTokenizer.from_pretrained

    def guesses_wrong(*arguments: object, **options: object) -> PreTrainedTokenizerBase:
        guessed = load(*arguments, **options)
        guessed.eos_token = guessed.pad_token = "<|im_start|>"
        return guessed

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", guesses_wrong)
    models._convert(converted[0], tmp_path)
    monkeypatch.undo()
    again = models.load_tokenizer(tmp_path)
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")


def test_digits_stand_alone() -> None:
    pieces = [piece for piece, _ in models.split_digits().pre_tokenize_str("in 1967, 2nd")]
    assert pieces == ["in", "Ġ", "1", "9", "6", "7", ",", "Ġ", "2", "nd"]


def test_conversion_happens_once(converted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFERENCE_OBJECTIVES_HOME", str(converted[0].parent / "home"))
    monkeypatch.setattr(models, "_convert", lambda *_: pytest.fail("converted again"))
    assert models.convert_gguf(converted[0]) == converted[1]


def test_saving_and_loading_keep_the_function(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    folder = models.save(model, tokenizer, tmp_path / "deep" / "saved")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert torch.equal(weights["model.norm.weight"], model.state_dict()["model.norm.weight"])
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(models.load_model(folder)(tokens).logits, model(tokens).logits)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name.startswith(".")) == []
    assert models.source_context_length(folder) == models.context_length(model) == 256


def test_pickled_weights_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load a model"):
        models.load_model(tmp_path)


@pytest.mark.parametrize("name", ["missing.gguf", "no/such-model-anywhere"])
def test_models_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=name):
        models.load_model(models.prepare(ModelConfig(name=name), tmp_path))


def test_an_asset_that_is_no_model_and_a_folder_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.assets, "fetch", lambda name: tmp_path)
    for name in ("vader", str(tmp_path)):
        with pytest.raises(InputError, match=r"not a language model|not a model folder"):
            models.prepare(ModelConfig(name=name), tmp_path)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.select_device(ModelConfig()).type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert models.select_device(ModelConfig()).type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert models.select_device(ModelConfig()).type == "cpu"
    with pytest.raises(InputError, match="'cuda', but this machine has only: cpu"):
        models.select_device(replace(ModelConfig(), device="cuda"))


def test_pickled_weights_in_a_folder_are_said_to_be_so(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    torch.save({}, folder / "pytorch_model.bin")
    assert models.prepare(ModelConfig(name=str(folder)), tmp_path) == str(
        folder
    )  # safetensors are there and will be read
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"pickle \(pytorch_model\.bin\), which may run code .* convert them to safetensors"
    ):
        models.prepare(ModelConfig(name=str(folder)), tmp_path)
    with pytest.raises(InputError, match=r"is a pickle, which may run code"):
        models.prepare(ModelConfig(name=str(folder / "pytorch_model.bin")), tmp_path)


def test_templates_by_name_and_by_file(tmp_path: Path, tiny_folder: Path) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
    ]
    tokenizer = models.use_template(models.load_tokenizer(tiny_folder), "dialogue")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    tokenizer = models.use_template(tokenizer, str(own))
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "[q][a][r]"
    assert models.use_template(tokenizer, None).chat_template == own.read_text()


@pytest.mark.parametrize("trust", [False, True])
def test_code_of_a_model_is_run_only_where_asked(
    trust: bool, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    seen = []
    for loader in (models.AutoTokenizer, models.AutoModelForCausalLM, models.AutoConfig):
        load = loader.from_pretrained
        monkeypatch.setattr(
            loader,
            "from_pretrained",
            lambda *a, load=load, **k: (seen.append(k["trust_remote_code"]), load(*a, **k))[1],
        )
    models.load_tokenizer(tiny_folder, trust=trust)
    models.load_model(tiny_folder, trust=trust)
    models.source_context_length(tiny_folder, trust=trust)
    assert seen[:3] and set(seen) == {trust}
    assert ModelConfig().trust_remote_code is False
