import pytest
from experiments import EXPERIMENT, LIVE, STUDY

from stimopt.config import read_experiment, read_study
from stimopt.errors import ConfigError


def written(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return path


def test_quantities_are_read_in_canonical_units(tmp_path):
    experiment = read_experiment(written(tmp_path, EXPERIMENT.replace("200 us", "0.2 ms")))
    assert experiment.stimulus["pulse_width_us"] == pytest.approx(200.0)
    assert experiment.interval_s == 10.0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("trials: 8", "trails: 8", r"line 12: trails is not a known key"),
        ("0.2", "0.2", None),
        ("200 us", "200 mA", "pulse_width_us"),
        ("{name: sobol}", "{name: sobool}", "line 11.*did you mean 'sobol'"),
        ("{name: sobol}", "{name: sobol, speed: 3}", "line 11.*speed is not an option"),
        ("{name: linear, patient: 2}", "{name: linear, patient: two}", "line 3.*patient"),
        ("mapping-50hz-seeg", "mapping", "profile 'mapping' is not known"),
        ("trials: 8", "trials: 0", "line 12: trials"),
        ("trials: 8\n", "", "trials is missing"),
        ("name: quiet-alpha", "name: [", "not YAML"),
        ("low: 5 Hz, high: 100 Hz", "low: 5 Hz, high: 100 Hz, hihg: 3", "line 8: space.frequency_hz.hihg"),
        ("system: {name: linear, patient: 2}\n", "", "either 'system'"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(tmp_path, old, new, words):
    assert old in EXPERIMENT or words is None
    path = written(tmp_path, EXPERIMENT.replace(old, new, 1))
    if words is None:
        read_experiment(path)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        read_experiment(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_holds_no_keys_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a file"):
        read_experiment(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="holds no keys"):
        read_experiment(written(tmp_path, "- just\n- a list\n"))


def test_studies_and_live_experiments_are_read(tmp_path):
    assert read_study(written(tmp_path, STUDY)).patients == [0, 1, 2]
    assert read_experiment(written(tmp_path, LIVE)).montage.contacts[2].name == "A3"
