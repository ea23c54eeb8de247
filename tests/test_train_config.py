"""One dataclass as command line, YAML file and record: what is read, what wins, and what is refused."""

import dataclasses
import subprocess
import sys

import pytest
import yaml
from config_parser import parse_config
from conftest import REPOSITORY, run_python
from train_config import TrainConfig, UserError

DIGITS = str(REPOSITORY / "training" / "configs" / "digits.yaml")


def write(path, **values) -> str:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def test_no_arguments_are_the_defaults():
    assert parse_config([]) == TrainConfig()


def test_the_digits_preset_is_the_default_run():
    assert parse_config(["--config", DIGITS]) == TrainConfig()


def test_flags_win_over_the_file_wherever_they_stand(tmp_path):
    file = write(tmp_path / "run.yaml", batch_size=16, seed=5)
    for arguments in (["--seed", "7", "--config", file], ["--config", file, "--seed=7"]):
        config = parse_config(arguments)
        assert (config.batch_size, config.seed) == (16, 7)


def test_every_type_of_value_can_be_given():
    config = parse_config(
        ["--block_out_channels", "[8,16,24]", "--learning_rate", "3e-4", "--class_conditional", "false",
         "--resolution", "32", "--image_mode", "RGB", "--attention_head_dim", "null", "--ema_stds", "[0.05,0.1]",
         "--unet_options", "{add_attention: false, norm_eps: 1e-6}"]
    )  # fmt: skip
    assert config.block_out_channels == (8, 16, 24)
    assert config.learning_rate == 3e-4
    assert config.class_conditional is False
    assert (config.resolution, config.image_mode) == (32, "RGB")
    assert config.attention_head_dim is None
    assert config.ema_stds == (0.05, 0.1)
    assert config.unet_options == {"add_attention": False, "norm_eps": 1e-6}


def test_a_size_that_is_not_square_and_single_options_of_the_network():
    config = parse_config(["--resolution", "[32,48]", "--unet_options.add_attention", "false"])
    assert (config.resolution, config.unet_options) == ((32, 48), {"add_attention": False})


@pytest.mark.parametrize(
    "arguments", [["--dry_run"], ["--dry_run", "--seed", "3"], ["--dry_run=true"], ["--dry_run", "true"]]
)
def test_a_switch_needs_no_value(arguments):
    assert parse_config(arguments).dry_run is True
    assert parse_config(["--resume", "false", *arguments]).resume is False


def test_the_record_of_a_run_reads_back_to_the_same_configuration(tmp_path):
    config = dataclasses.replace(
        TrainConfig(), block_out_channels=(8, 24), resolution=(32, 48), learning_rate=3e-5,
        attention_head_dim=None, unet_options={"norm_eps": 1e-6, "mid_block_type": None}, ema_decays=(), ema_stds=(0.1,),
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_every_field_is_explained():
    help_text = run_python("training/train.py", "--help").stdout
    for field in dataclasses.fields(TrainConfig):
        _, _, explained = help_text.partition(f"  --{field.name} ")
        assert explained.split("(type")[0].strip().lower() not in ("", field.name), field.name


def test_help_imports_nothing_heavy():
    script = "import sys; sys.path.insert(0, 'training'); import train\ntry: train.main(['--help'])\nexcept SystemExit: pass\n"
    script += "print([m for m in ('torch', 'datasets', 'diffusers', 'accelerate', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_checking_imports_nothing_heavy():
    script = "import sys; sys.path.insert(0, 'training'); from config_parser import parse_config; parse_config([])\n"
    script += "print([m for m in ('torch', 'datasets', 'diffusers', 'accelerate', 'numpy') if m in sys.modules])"
    assert run_python("-c", script).stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batchsize", "3"], "unknown flag --batchsize; did you mean --batch_size?"),
        (["--lr", "3"], "unknown flag --lr. `train.py --help` lists"),
        (["--batch_size", "0"], "`batch_size` is 0; it must be at least 1"),
        (["--batch_size", "six"], "batch_size.*int.*six"),
        (["--max_train_steps", "0"], "`max_train_steps` is 0"),
        (["--max_train_steps", "-5"], "`max_train_steps` is -5"),
        (["--max_train_steps", "10"], "`warmup_steps` is 100; .*max_train_steps = 10; add --warmup_steps 1"),
        (["--seed", "5000000000"], "`seed` is 5000000000; it must be from 0 to 4000000000"),
        (["--seed", "-1"], "`seed` is -1; it must be from 0"),
        (["--block_out_channels", "8", "16"], r"with brackets, like --block_out_channels '\[32,64\]'"),
        (["--report_to", "tensorboard"], "report_to.*tensorboard.*Lists are written with brackets"),
        (["--ema_decay", "0.9"], "unknown flag --ema_decay; did you mean --ema_decays?"),
        (["--unet_optons.act_fn", "relu"], "unknown flag --unet_optons.act_fn; did you mean --unet_options?"),
        (["--learning_rate", "0"], "`learning_rate` is 0.0; it must be a positive number"),
        (["--learning_rate", "nan"], "learning_rate.*nan"),
        (["--class_dropout", "1"], "`class_dropout` is 1.0; it must be from 0 to below 1"),
        (["--mixed_precision", "fp8"], "`mixed_precision` is 'fp8'; it must be one of no, fp16, bf16"),
        (
            ["--variance_type", "analytic"],
            "`variance_type` is 'analytic'; it must be one of fixed_small, fixed_large, learned",
        ),
        (["--image_mode", "HSV"], "`image_mode` is 'HSV'; it must be one of L, RGB, RGBA"),
        (["--block_out_channels", "[30]"], "`block_out_channels` is .*multiples of norm_num_groups = 8"),
        (["--block_out_channels", "[]"], "`block_out_channels` is"),
        (["--num_inference_steps", "2000"], "`num_inference_steps` is 2000; it must be at most num_train_timesteps"),
        (["--gradient_accumulation_steps", "3"], "`batch_size` is 64; it must be a multiple of"),
        (["--resolution", "0"], "`resolution` is 0"),
        (["--license", ""], "`license` is ''; it must be an identifier of the Hub like apache-2.0"),
        (["--license", "Apache License"], "`license` is 'Apache License'"),
        (["--config"], "`--config` is the last argument"),
        (["--config", "nowhere.yaml"], "`--config` is 'nowhere.yaml', which cannot be read"),
    ],
)
def test_mistakes_are_told_with_the_name_and_the_remedy(arguments, message):
    with pytest.raises(UserError, match=message):
        parse_config(arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1.0", "unknown key in .*: learning_rat; did you mean learning_rate?"),
        ("seed: [1", "no valid YAML"),
        ("just words", "holds no `key: value` lines"),
        ("", "holds no `key: value` lines"),
        ("batch_size: many", "batch_size"),
        ("batch_size: null", "`batch_size` is null; leave it out for the default, 64"),
        ("block_out_channels: null", r"`block_out_channels` is null; leave it out for the default, \[32, 64\]"),
        ("unet_options: null", "unet_options"),
        ("report_to: tensorboard", "report_to.*Lists are written with brackets"),
        ("ema_decay: 0.9", "unknown key in .*: ema_decay; did you mean ema_decays?"),
        ("output_dir: null", "`output_dir` is null"),
        ("mixed_precision: no", "`mixed_precision` in .*write 'no', with the quotes"),
        ("seed: 1\nbatch_size: 8\nseed: 2", "seed stands 2 times"),
    ],
)
def test_mistakes_in_the_file_are_told(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        parse_config(["--config", str(tmp_path / "run.yaml")])
