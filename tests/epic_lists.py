"""Official annotation files of EPIC-KITCHENS in miniature, for the clips of a manifest."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

COLUMNS = {"epic100": "narration_id", "epic55": "uid"}


def official(table: pd.DataFrame, edition: str) -> pd.DataFrame:
    """Segments that start where the clips end, in the columns of the official files that are read."""
    seconds = table["stop_s"].map(lambda s: f"00:{int(s // 60):02d}:{s % 60:05.2f}")
    made = {COLUMNS[edition]: table["uid"], "participant_id": table["subject"], "video_id": table["group"]}
    made |= {"start_timestamp": seconds, "stop_timestamp": "00:59:00.00"}
    if table["verb"].notna().all():
        made |= {"verb_class": table["verb"], "noun_class": table["noun"]}
    return pd.DataFrame(made)


def epic100(folder: Path, table: pd.DataFrame, unseen: list[str], verbs: list[int], nouns: list[int]) -> Path:
    """The folder with validation and test segments, unseen participants and tail classes."""
    folder.mkdir()
    for split, name in (("validation", "EPIC_100_validation.csv"), ("test", "EPIC_100_test_timestamps.csv")):
        official(table[table["split"] == split], "epic100").to_csv(folder / name, index=False)
    people = pd.DataFrame({"participant_id": unseen})
    people.to_csv(folder / "EPIC_100_unseen_participant_ids_validation.csv", index=False)
    pd.DataFrame({"verb": verbs}).to_csv(folder / "EPIC_100_tail_verbs.csv", index=False)
    pd.DataFrame({"noun": nouns}).to_csv(folder / "EPIC_100_tail_nouns.csv", index=False)
    return folder


def epic55(folder: Path, table: pd.DataFrame) -> Path:
    """The folder with labelled segments, both test sets and many-shot classes."""
    folder.mkdir()
    names = {"test_s1": "EPIC_test_s1_timestamps.csv", "test_s2": "EPIC_test_s2_timestamps.csv"}
    for split, name in names.items():
        official(table[table["split"] == split], "epic55").to_csv(folder / name, index=False)
    labelled = table[table["split"].isin(["train", "validation"])]
    official(labelled, "epic55").to_csv(folder / "EPIC_train_action_labels.csv", index=False)
    pd.DataFrame({"verb_class": [0, 2]}).to_csv(folder / "EPIC_many_shot_verbs.csv", index=False)
    pd.DataFrame({"noun_class": [3, 4]}).to_csv(folder / "EPIC_many_shot_nouns.csv", index=False)
    actions = pd.DataFrame({"verb_class": [0, 2], "noun_class": [3, 3]})
    actions.to_csv(folder / "EPIC_many_shot_actions.csv", index=False)
    return folder
