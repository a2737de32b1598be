"""The style of pictures: both themes are legible, every figure keeps its own, and the user's settings stay."""

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tinylm.console import THEME, THEMES
from tinylm.errors import ConfigError
from tinylm.runs.plots import Curves, figure_of, save_figure
from tinylm.runs.style import COLORS, GREEN, GREY, ink, letters, luminance, new_figure, shades, style


def contrast(one, other) -> float:
    """The contrast ratio of WCAG 2.2, from 1 to 21."""
    bright, dark = sorted((luminance(to_rgb(one)), luminance(to_rgb(other))), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_luminance_is_that_of_the_standard():
    """The extremes, and a grey of half the signal: ((0.5 + 0.055) / 1.055)^2.4 = 0.2140."""
    assert luminance((0, 0, 0)) == 0 and luminance((1, 1, 1)) == pytest.approx(1)
    assert luminance((0.5, 0.5, 0.5)) == pytest.approx(0.2140, abs=1e-4)
    assert contrast("white", "black") == pytest.approx(21)


@pytest.mark.parametrize("theme", THEMES)
def test_text_and_series_stand_out_from_the_ground(theme):
    """Text by WCAG's level AAA; series by more than the palest of Okabe and Ito's colours has on white."""
    with style(theme):
        ground = matplotlib.rcParams["axes.facecolor"]
        assert contrast(ink(), ground) > 7
        for color in (*COLORS, GREEN, GREY):
            assert contrast(color, ground) > 2.1, color
        scale = shades()
        assert all(contrast(letters(scale(value)), scale(value)[:3]) > 4.5 for value in np.linspace(0, 1, 101))
        assert scale(0.0)[:3] == pytest.approx(to_rgb(ground), abs=1 / 512)


def test_a_figure_keeps_its_theme_wherever_it_is_drawn_and_settings_of_the_user_stay(monkeypatch, tmp_path):
    x = np.array([1.0, 2.0])
    before = dict(matplotlib.rcParams)
    files = []
    for theme in ("dark", "light"):
        monkeypatch.setenv(THEME, "dark")
        figure = figure_of([Curves("run", {"val/loss": (x, x)})], panels=["loss"])
        monkeypatch.setenv(THEME, theme)  # when it is saved
        save_figure(figure, tmp_path / "p.svg")
        files.append((tmp_path / "p.svg").read_text())
    assert files[0] == files[1]
    assert "#17191d" in files[0] and "#56a8e8" in files[0].lower()
    assert dict(matplotlib.rcParams) == before


def test_themes_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(THEME, "")
    assert new_figure(1, 1).get_facecolor() == (1, 1, 1, 1)
    monkeypatch.setenv(THEME, "drak")
    with pytest.raises(ConfigError, match="TINYLM_THEME must be one of light, dark, got 'drak'"):
        new_figure(1, 1)


def test_pyplot_knows_both_styles_by_name():
    with matplotlib.style.context(["tinylm.tinylm", "tinylm.dark"]):
        assert matplotlib.rcParams["figure.constrained_layout.use"]
        assert luminance(to_rgb(matplotlib.rcParams["figure.facecolor"])) < 0.02
