"""A model of every family, converted here, on Arm without a board: the workstation's logits.

The package, its library and its packages are those that ``bundle`` puts together for a Raspberry
Pi 4B; Debian's own Python runs them under qemu as its Cortex-A72.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import checkpoints  # noqa: E402  (after the checks that torch and transformers are there)
import expert_models  # noqa: E402
from boards import CPUS, ROOT, run_emulated  # noqa: E402
from family_rows import row_model  # noqa: E402
from test_biased_norm_families import LARGE  # noqa: E402
from test_biased_norm_families import ROWS as BIASED  # noqa: E402
from test_layer_kinds import ROWS as KINDS  # noqa: E402

from awq_edge import Model  # noqa: E402
from awq_edge.conversion import Options, convert  # noqa: E402

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has no TOML reader before 3.11
    import tomli as tomllib

GROUPED: dict[str, Any] = dict(num_key_value_heads=2)
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "mistral": ("mistral", dict(**GROUPED, sliding_window=8)),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", dict(**GROUPED, head_dim=32)),
    "phi3": ("phi3", GROUPED),
    "granite": ("granite", dict(**GROUPED, residual_multiplier=0.22, logits_scaling=8.0)),
    "glm": ("glm", dict(**GROUPED, head_dim=16)),
    "ernie4_5": ("ernie4_5", GROUPED),
    "opt": ("opt", dict(ffn_dim=96)),
    "opt-stream": ("opt", dict(ffn_dim=96, do_layer_norm_before=False, word_embed_proj_dim=32)),
    "gpt_bigcode": ("gpt_bigcode", dict(n_inner=96)),
    "gpt_bigcode-heads": ("gpt_bigcode", dict(n_inner=96, multi_query=False)),
}
FORMS = {**PLAIN, **KINDS, **{k: v for k, v in BIASED.items() if k not in LARGE}}
CPU = "cortex-a72"
TEXT = [3, 9, 27, 17, 51, 25, 11, 33, 35, 41, 59, 13, 39, 53, 31, 29]
REPORT = """
import hashlib, json, sys
from pathlib import Path
from awq_edge import Model
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
    with Model.open(path, threads=2) as model:
        logits = model.logits(json.loads(sys.argv[2]))
        kernels = model.shared_session.kernels
        found[path.stem] = [kernels, hashlib.sha256(logits.tobytes()).hexdigest()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every row, 4 bits."""
    folder = tmp_path_factory.mktemp("families")
    made = {name: (lambda row=row: row_model(*row)) for name, row in FORMS.items()}
    for name in expert_models.MODELS:
        made[f"experts-{name}"] = lambda name=name: expert_models.random_model(name)
    options = Options(method="rtn", bits=4, group_size=32)
    for name, make in made.items():
        source = checkpoints.save(make(), folder / f"{name}-checkpoint")
        convert(str(source), folder / f"{name}.gguf", options)
    return folder


def test_every_family_has_the_logits_of_the_workstation(models: Path) -> None:
    done = run_emulated(CPU, "-c", REPORT, models, json.dumps(TEXT))
    assert done.returncode == 0, done.stderr
    expected = {}
    for path in models.glob("*.gguf"):
        with Model.open(path) as model:
            digest = hashlib.sha256(model.logits(TEXT).tobytes()).hexdigest()
            expected[path.stem] = [CPUS[CPU], digest]
    assert json.loads(done.stdout) == expected


def test_no_family_of_texts_is_left_out(models: Path) -> None:
    here = {
        json.loads(path.read_text(encoding="utf-8"))["model_type"]
        for path in models.glob("*/config.json")
    }
    listed = tomllib.loads((ROOT / "docs/families.toml").read_text(encoding="utf-8"))["family"]
    left = [
        family["title"]
        for family in listed
        # Without a class to make a model of: its weights are another family's by other names.
        if "class" in family
        and "vision.md" not in family["title"]
        and not here & {*family["types"]}
    ]
    assert not left
