"""Load a language model and its tokenizer from a pinned asset, a folder, a GGUF file or a hub id; save it as safetensors.

GGUF is converted once and cached. No pickle is ever read, and no code that comes with a
model is run unless `trust_remote_code` asks for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from analysis.records import atomic_folder, fingerprint
from llm_runs import assets, gguf_header, processes, sharding
from llm_runs.config import ModelConfig
from llm_runs.errors import InputError

TINY = "tiny-random"

# What SmolLM2 and other ChatML models use, without a default system prompt.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Where tokenizers with one vocabulary differ: digits, spaces, cases, accents, scripts, code, special tokens in the text.
PROBE = (
    "Hello world! It's 2 to 1,234.5678 (e.g. 10%)...  two  spaces\ttab\n\nnew lines  \n"
    "naïve café ﬁnal Ｆｕｌｌ 東京 привет 🙂 e\u0301 https://a.b/c?d=e_f camelCase SHOUT don't you'll\n"
    "def f(x):\n    return x**2 # </s><|endoftext|><|im_end|>"
)

# For base models, which have no template of their own: the form of HH-RLHF, in plain words.
DIALOGUE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% else %}{{ '\n\nAssistant: ' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
TEMPLATES = {"dialogue": DIALOGUE, "chatml": CHATML}

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def select_device(config: ModelConfig) -> torch.device:
    """The device to run on: as configured, or CUDA, then MPS, then CPU, whichever is there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if config.device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[config.device]:
        usable = ", ".join(name for name, there in available.items() if there)
        raise InputError(f"model.device is {config.device!r}, but this machine has only: {usable}")
    return torch.device(config.device)


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 arithmetic on CUDA (weights stay as loaded); elsewhere nothing, because CPUs are slower with it."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def prepare(config: ModelConfig, folder: Path, texts: Iterable[str] = (), seed: int = 0) -> str:
    """Where the configured model can be loaded from: a folder, or a hub id.

    Fetches and converts what is needed. `tiny-random` is made in `folder`, its tokenizer trained on `texts`.
    """
    if config.name == TINY:
        if not (folder / "config.json").is_file():
            _write(*tiny_random(texts, seed), folder)  # not `save`: this may be one process's turn
        return str(folder)
    if config.name in assets.ASSETS:
        files = sorted(assets.fetch(config.name).rglob("*.gguf"))
        if not files:
            raise InputError(f"the asset {config.name!r} is not a language model")
        return str(convert_gguf(files[0]))
    path = Path(config.name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no such model file: {path}")
        return str(convert_gguf(path))
    if path.is_file():
        kind = "a pickle, which may run code when it is loaded" if path.suffix in _PICKLED else "no model folder"
        raise InputError(f"{path} is {kind}; give a folder with config.json and safetensors, a .gguf file, or a hub id")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} is not a model folder: it has no config.json")
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLED)
        if pickled and not any(path.glob("*.safetensors")):
            raise InputError(
                f"{path} holds its weights as pickle ({pickled[0]}), which may run code when it is loaded and is never read here; "
                "convert them to safetensors (save_pretrained in an environment that you trust)"
            )
        return str(path)
    return config.name


def load_tokenizer(source: str | Path, revision: str | None = None, *, trust: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left as batched generation needs it."""
    with _load_errors(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source), revision=revision, trust_remote_code=trust
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {source} has no end-of-text token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is known by attention masks, never by its id
    tokenizer.padding_side = "left"
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what a tokenizer does: its vocabulary, its special tokens, and the ids of a text on which tokenizers differ."""
    behaviour = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        "probe": tokenizer(PROBE).input_ids,
    }
    return hashlib.sha256(json.dumps(behaviour).encode()).hexdigest()


def use_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer with another chat template: "dialogue", "chatml", or a Jinja file; None keeps its own."""
    if name is None:
        return tokenizer
    path = Path(name).expanduser()
    if name not in TEMPLATES and not path.is_file():
        raise InputError(f"model.template: no such file {name!r}; give a Jinja file or one of: {', '.join(TEMPLATES)}")
    try:
        tokenizer.chat_template = TEMPLATES[name] if name in TEMPLATES else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"model.template: cannot read {path}: {error}") from error
    return tokenizer


def load_model(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    revision: str | None = None,
    *,
    trust: bool = False,
) -> PreTrainedModel:
    """The model with its weights in `dtype` (auto: float32), on `device`, in evaluation mode."""
    with _load_errors(source):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(source),
            revision=revision,
            dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
            use_safetensors=True,
            trust_remote_code=trust,
        )
    return model.to(device).eval()  # type: ignore[arg-type]


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Model (safetensors) and tokenizer into `folder`, which appears whole or not at all.

    A model that several processes hold is saved by all of them together, and written by the first. One that is there is replaced.
    """
    state = sharding.whole_state(model)
    processes.by_first(lambda: _write(model, tokenizer, folder, state))
    return folder


def _write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, state: dict[str, Any] | None = None
) -> None:
    def fill(empty: Path) -> None:
        model.save_pretrained(empty, state_dict=state)
        tokenizer.save_pretrained(empty)

    atomic_folder(folder, fill, replace=True)


def source_fingerprint(source: str | Path, revision: str | None = None) -> str:
    """What identifies a model's weights without loading them: the checksum of its folder's, or a hub id with its commit."""
    if Path(source).is_dir():
        return fingerprint([fingerprint(path) for path in sorted(Path(source).glob("*.safetensors"))])
    with _load_errors(source):
        config = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    return f"{source}@{getattr(config, '_commit_hash', None) or revision}"


def context_length(model: PreTrainedModel) -> int:
    """The most tokens, prompt and completion together, that the model was made for."""
    return _context(model.config)


def source_context_length(source: str | Path, revision: str | None = None, *, trust: bool = False) -> int:
    """`context_length` of a model that is not loaded."""
    return _context(source_settings(source, revision, trust=trust)[0])


def source_settings(
    source: str | Path, revision: str | None = None, *, trust: bool = False
) -> tuple[PretrainedConfig, GenerationConfig | None]:
    """The configuration of a model that is not loaded, and its settings for generation, where it has some."""
    with _load_errors(source):
        config = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=trust)
    try:
        return config, GenerationConfig.from_pretrained(str(source), revision=revision)
    except OSError:
        return config, None


def _context(config: PretrainedConfig) -> int:
    return int(getattr(config, "max_position_embeddings", 0) or 2**31)


def convert_gguf(path: Path) -> Path:
    """A GGUF file as a cached folder of safetensors (float32) and tokenizer, converted on first use.

    Raises:
        InputError: the file is damaged, or holds a model that cannot be converted.
    """
    gguf_header.read(path)  # the loader trusts every length that it reads
    folder = assets.home() / "converted" / f"{path.stem}-{fingerprint(path)[:12]}"
    room = 12 * path.stat().st_size  # four bits to 32, and as much again while saving
    return assets.build(folder, room, lambda temporary: _convert(path, temporary))


def _convert(path: Path, folder: Path) -> None:
    with _load_errors(path, Exception):  # the loader raises whatever a missing or strange entry leads to
        quantised = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    # The loaded model refuses to be saved as long as its config calls it quantised, so make a clean one.
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    if "rms_norm_eps" in settings:
        settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")  # 9.999999747e-06 was 1e-5 before float32
    model = AutoModelForCausalLM.from_config(type(quantised.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    header = gguf_header.read(path).values
    for role, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("pad_token", "padding_token_id")):
        if (key := f"tokenizer.ggml.{key}") in header:  # loaders guess these by name, and differently between versions
            setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(int(header[key])))
    if header.get("tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = split_digits()
    tokenizer.model_max_length = context_length(model)
    tokenizer.padding_side = "left"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def split_digits() -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer that GGUF calls "smollm": every digit on its own, then bytes. Loaders of GGUF forget the digits."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def tiny_random(
    texts: Iterable[str], seed: int = 0, vocabulary: int = 512
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An untrained Llama (2 layers, 64 wide) with a byte-pair tokenizer trained on `texts`: nothing to download."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = split_digits()
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
        padding_side="left",
        model_max_length=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    return model.eval(), tokenizer


@contextlib.contextmanager
def _load_errors(source: str | Path, *raised: type[Exception]) -> Any:
    kinds = raised or (
        OSError,
        ValueError,
        RuntimeError,
        SafetensorError,
    )  # the latter two: damaged weights, other shapes
    try:
        yield
    except kinds as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(
            f"cannot load a model from {str(source)!r}: {reason}. Give one of {', '.join((TINY, 'smollm2-135m-instruct'))}, "
            "a folder with config.json and safetensors, a .gguf file, or a hub id that this machine can reach."
        ) from error
