"""The pairs that a report shows: the first ones and whatever is worth a look, what the judge says of each, its anchor."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from patches import random_patch
from test_scorer import judge, scorer
from tiny_models import NAMES, tiny_model

from semu_diffusion.domains.questions import Question
from semu_diffusion.eval.evaluate import evaluate
from semu_diffusion.eval.images import to_uint8
from semu_diffusion.eval.judges.class_mapping import ClassMapping
from semu_diffusion.eval.judges.judge import Judge
from semu_diffusion.eval.judges.networks import JudgeNetwork
from semu_diffusion.eval.pictures import (
    ATTEMPTS,
    OF_PROBE,
    ROOM,
    UNPROMPTED,
    WORST,
    Pictures,
    Tried,
    anchor_images,
    choose_pictures,
)
from semu_diffusion.eval.probes import PROBES
from semu_diffusion.eval.probes.probe import Sampled, Shown
from semu_diffusion.eval.probes.revival import Learning
from semu_diffusion.eval.scorer import NO_CONDITION, Samples
from semu_diffusion.pipelines.report.page.page import origin_of
from semu_diffusion.pipelines.report.pictures import shown_pictures


def painted(**colours: str) -> Samples:
    """Pictures (n, 3, 4, 4) of each condition, one of these letters each: a strong r, g or b."""
    found = {}
    for name, letters in colours.items():
        images = torch.full((len(letters), 3, 4, 4), 10, dtype=torch.uint8)
        for place, letter in enumerate(letters):
            images[place, "rgb".index(letter)] = 250
        found[NO_CONDITION if name == "none" else name] = images
    return found


def test_what_is_worth_a_look_is_shown_wherever_it_stands_and_says_why() -> None:
    many = 3 * ROOM
    before = painted(red="r" * many, green="g" * many, blue="b" * many, none="rg")
    after = painted(red="g" * (many - 1) + "r", green="g" * (many - 1) + "b", blue="b" * many, none="bg")
    found = choose_pictures(scorer("red"), before, after)
    marked = {(row.group, row.condition, row.index): row for row in found.rows}
    still, lost = marked["forget", "red", many - 1], marked["in_domain", "green", many - 1]
    assert "still_seen" in still.notable
    assert still.erased
    assert {"lost", "changed_most"} <= set(lost.notable)
    assert (lost.answer, lost.before and lost.before.label, lost.after and lost.after.label) == ("green", "green", "blue")
    assert (UNPROMPTED, "", 1) in marked
    assert sum("changed_most" in row.notable for row in found.rows) == WORST
    assert sum(row.group == "forget" for row in found.rows) == ROOM + 1
    assert still.seed == scorer("red").sampling.seeds("red", many)[-1]
    assert found.became["forget"]["red"] == {"red": {"green": many - 1, "red": 1}}
    assert found.became["in_domain"]["green"] == {"green": {"green": many - 1, "blue": 1}}
    assert found.became[UNPROMPTED]["red"] == {"red": {"blue": 1}, "green": {"green": 1}}


def test_a_close_call_of_the_judge_is_marked_as_unsure() -> None:
    before = painted(red="rr", green="gg", blue="bb")
    grey = {**before, "green": torch.full((2, 3, 4, 4), 128, dtype=torch.uint8)}
    rows = choose_pictures(scorer("red"), before, grey).rows
    assert {row.condition for row in rows if "unsure" in row.notable} >= {"green"}
    green = next(row for row in rows if row.condition == "green")
    assert green.after is not None
    assert len(green.after.shares) == 3
    assert list(green.after.shares.values()) == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_without_a_judge_pictures_are_shown_and_nothing_is_said_of_them() -> None:
    before = painted(red="rr", green="gg", blue="bb", none="r")
    found = choose_pictures(scorer("red", judges={}), before, before)
    assert found.became == {}
    assert {row.condition for row in found.rows} == {*NAMES, ""}
    assert all(row.before is row.after is row.answer is None for row in found.rows)
    assert {row.condition for row in found.rows if row.erased} == {"red", ""}


def test_a_group_that_nobody_has_heard_of_is_shown_too() -> None:
    before = painted(red="r", green="g", blue="b")
    asked = scorer("red")
    more = {"forget": asked.questions["forget"], "held_out": (Question("blue", "object", "blue"),)}
    rows = choose_pictures(scorer("red", questions=more), before, before).rows
    assert [(row.group, row.condition, row.erased) for row in rows] == [("forget", "red", True), ("held_out", "blue", False)]


def test_an_anchor_is_what_the_original_makes_of_it_from_the_pictures_own_noise() -> None:
    model, asked = tiny_model(), scorer("red")
    before = asked.sample(model)
    rows = choose_pictures(asked, before, before).rows
    found = anchor_images(asked, model, {"red": "green"}, rows)
    assert [rows[place].condition for place in found] == ["red"] * 3
    place = list(found)[1]
    (expected,) = model.sample([model.row("green")], [rows[place].seed], 2, 3.0)
    assert torch.equal(found[place], to_uint8(expected)[0])


def test_what_a_probe_brings_back_is_shown_from_its_own_seeds_and_says_where_it_is_seen() -> None:
    model, asked = tiny_model(), scorer("red")
    shown = Shown("red", judge(), torch.rand(4, 3, 8, 8) * 2 - 1, conditions=("red",))
    learned = PROBES["class-vector"]((shown,), Learning(20, 2, steps=1, batch_size=2, restarts=2, screened=3))
    tried_without = PROBES["noise"]((shown,), Sampled(5, 2))
    evaluation, before, after, tried = evaluate(asked, model, random_patch(model.denoiser), [learned, tried_without])
    found = choose_pictures(asked, before, after, tried)
    for probe, count in ((learned, 20), (tried_without, 5)):
        group, seen = ATTEMPTS + probe.name, evaluation.after.probes[probe.name]["red"].share
        rows = [row for row in found.rows if row.group == group]
        assert min(count, OF_PROBE) <= len(rows) <= 3 * OF_PROBE
        assert all(row.erased and row.answer == "red" and row.seed == probe.how.seeds[row.index] for row in rows)
        assert all(("still_seen" in row.notable) == (row.after is not None and row.after.label == "red") for row in rows)
        became = found.became[group]["red"]
        assert sum(row.get("red", 0) for row in became.values()) == round(seen * count)
        assert sum(sum(row.values()) for row in became.values()) == count
    images = shown_pictures(asked, model, before, after, tried=tried).rows
    assert all(row.images.keys() == {"before", "after"} for row in images)


def test_what_starts_from_pictures_instead_of_noise_claims_no_seed() -> None:
    model, asked = tiny_model(), scorer("red")
    shown = Shown("red", judge(), torch.rand(2, 3, 8, 8) * 2 - 1, conditions=("red",))
    inversion = PROBES["inversion"]((shown,), Sampled(2, 2))
    _, before, after, tried = evaluate(asked, model, random_patch(model.denoiser), [inversion])
    rows = [row for row in choose_pictures(asked, before, after, tried).rows if row.group == ATTEMPTS + "inversion"]
    assert [row.seed for row in rows] == [None, None]
    assert [origin_of(row) for row in rows] == ["picture 1", "picture 2"]


def test_of_more_names_than_there_is_room_for_as_many_are_shown_as_fit() -> None:
    images, names = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [f"noise: {number}" for number in range(OF_PROBE + 2)]
    tried = [Tried("noise", Question(name, "object", "red"), images, images, range(1)) for name in names]
    rows = choose_pictures(scorer("red", judges={}), {}, {}, tried).rows
    assert len({row.condition for row in rows}) == OF_PROBE


def test_what_was_written_comes_back_and_small_pictures_keep_every_pixel() -> None:
    from test_report import pixels

    model, asked = tiny_model(), scorer("red")
    before = asked.sample(model)
    found = shown_pictures(asked, model, before, before, {"red": "green"})
    assert Pictures.from_json(json.loads(json.dumps(asdict(found)))) == found
    row = found.rows[0]
    assert set(row.images) == {"before", "after", "anchor"}
    assert torch.equal(pixels(row.images["before"]), before[row.condition][row.index])


def test_a_judges_shares_are_summed_over_the_classes_that_stand_for_one() -> None:
    network = JudgeNetwork("four", "0", 4, ("a", "b", "c", "d"), 3, 3, 8, lambda x: x.flatten(1)[:, :4], lambda x: x)
    mapped = Judge(network, ("one", "two"), ClassMapping(torch.tensor([0, 0, 1, -1]), ()), torch.device("cpu"))
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    predicted, shares = mapped.verdicts(images)
    each = (to_uint8(images).float() / 255).flatten(1)[:, :4].softmax(1)
    torch.testing.assert_close(shares, torch.stack([each[:, 0] + each[:, 1], each[:, 2], each[:, 3]], 1))
    assert torch.equal(predicted, torch.tensor([0, 0, 1, -1])[each.argmax(1)])
    assert torch.equal(predicted, mapped.predict(images))
    assert judge().verdicts(images)[1].sum(1).tolist() == pytest.approx([1.0] * 5)
