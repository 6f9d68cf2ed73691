"""Lists of the datasets, as they are distributed, in few lines each; spoilt, and read by those that make manifests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.datasets import manifest_for
from kdcache.errors import KdcacheError
from torture.readers import WrongTensor
from torture.texts import CELLS, spoil_bytes, spoil_csv

_EPIC = "participant_id,video_id,{}start_timestamp,stop_timestamp,start_frame,stop_frame"
_LABELS = "verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
_TIMES = "00:00:0{0}.14,00:00:0{1}.37,8,202"
_OF_55 = f"uid,{_EPIC.format('narration,')},{_LABELS}\n" + "".join(
    f"{i},P{p},P{p}_01,\"open, it\",{_TIMES.format(i + 2, i + 4)},open,{i},door,8,['door'],[8]\n"
    for i, p in enumerate(("01", "02", "26", "27"))
)
_OF_100 = f"narration_id,{_EPIC.format('narration_timestamp,')},narration,{_LABELS}\n" + "".join(
    f"P01_11_{i},P01,P01_11,00:00:00.560,{_TIMES.format(i + 2, i + 4)},take,take,{i},plate,2,['plate'],[2]\n"
    for i in range(4)
)
_EGTEA = "P0{}-R01-PastaSalad-91700-93600-F002751-F002808 3 3 3 \n"

FILES = {
    "epic55": {"EPIC_train_action_labels.csv": _OF_55, "EPIC_video_info.csv": "video,resolution,duration,fps\n"
               + "".join(f"P{p}_01,1x1,652.15,59.94\n" for p in ("01", "02", "26", "27"))},
    "epic100": {"EPIC_100_train.csv": _OF_100, "EPIC_100_validation.csv": _OF_100.replace("_11", "_12"),
                "EPIC_100_video_info.csv": "video_id,duration,fps,resolution\nP01_11,1652.1,50.0,1x1\n"},
    "rulstm": {"training.csv": "00330, P01_02, 0000000152, 0000000205, 000, 004, 0194\n",
               "validation.csv": "00000, P01_01, 0000000104, 0000000201, 002, 008, 1298\n"},
    "jhmdb": {f"splits/{c}_test_split1.txt": f"{c}_a.avi 1\n{c}_b.avi 2\n" for c in ("brush_hair", "catch")},
    "thumos14": {"TH14_Temporal_annotations_validation/annotation/Diving_val.txt":
                 "video_validation_0000051 15.1 18.4\nvideo_validation_0000051 67.5 75.5\n",
                 "TH14_Temporal_annotations_test/annotation/Diving_test.txt": "video_test_0000004 8.3 12.8\n",
                 "video_durations.csv": "video,duration_s\nvideo_test_0000004,33.7\nvideo_validation_0000051,169.8\n"},
    "ucf101": {"trainlist01.txt": "Diving/v_Diving_g08_c01.avi 1\nBiking/v_Biking_g09_c01.avi 2\n",
               "testlist01.txt": "Diving/v_Diving_g01_c01.avi\nBiking/v_Biking_g02_c01.avi\n",
               "classInd.txt": "1 Diving\n2 Biking\n"},
    "hmdb51": {f"{c}_test_split1.txt": f"{c}_a.avi 1\n{c}_b.avi 2\n{c}_c.avi 0\n" for c in ("brush_hair", "wave")},
    "kinetics": {"train.csv": "label,youtube_id,time_start,time_end,split\nair drumming,abcdefghijk,5,15,train\n"
                 "abseiling,-bcdefghijk,95,105,train\n",
                 "val.csv": "label,youtube_id,time_start,time_end,split\nabseiling,cbcdefghijk,0,10,validate\n",
                 "kinetics400_label_map.txt": "abseiling\nair drumming\n"},
    "ssv1": {"something-something-v1-train.csv": "100218;Pushing [something]\n7;Closing [something]\n",
             "something-something-v1-validation.csv": "9;Closing [something]\n",
             "something-something-v1-labels.csv": "Pushing [something]\nClosing [something]\n"},
    "sysu": {"clips.csv": "clip_id,subject,label,rgb_path,skel_path\n"
             + "".join(f"c{i},s{i % 4},{i // 4},rgb/{i}.avi,skel/{i}.txt\n" for i in range(8))},
    "ntu": {"skes_available_name.txt": "S001C001P001R001A001\nS001C002P003R001A060\nS001C001P004R001A002\n",
            "samples_with_missing_skeletons.txt": "S001C002P005R002A008\n"},
    "msraction3d": {"a01_s01_e01_skeleton3D.txt": "", "a02_s02_e01_skeleton3D.txt": "",
                    "msraction3d_files_used.txt": "a01_s01_e01 a02_s02_e01\n"},
    "gtea": {"labels/S1_Cheese_C1.txt": "<take><bread> (90-134) [1]\n<put><tea> (1-15) [1]\n",
             "labels/S2_Tea_C1.txt": "<stir><cup> (16-30) [1]\n<pour><water,cup> (46-60) [1]\n"},
    "egtea": {"action_annotation/train_split1.txt": _EGTEA.format(7),
              "action_annotation/test_split1.txt": _EGTEA.format(8)},
    "folder": {"walk/a.avi": "", "walk/b.avi": "", "run/c.avi": "", "run/d.avi": "",
               "groups.csv": "source,group\nwalk/a.avi,1\nwalk/b.avi,2\nrun/c.avi,1\nrun/d.avi,2\n"},
}  # fmt: skip
"""Dataset → its files below the root."""

OPTIONS: dict[str, dict[str, Any]] = {"folder": {"groups": "groups.csv", "held_out": "1"}, "jhmdb": {"observe": 0.0}}


def lists(folder: Path) -> None:
    """A root of every dataset that has lists; each must make a manifest while it is whole."""
    for dataset, files in FILES.items():
        for name, text in files.items():
            (folder / dataset / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / dataset / name).write_text(text)
        manifest_for(dataset, folder / dataset, **OPTIONS.get(dataset, {}))


def spoil_list(path: Path, rng: random.Random) -> str:
    """A cell, a column, a row, a word, or bytes."""
    if path.suffix == ".csv" and rng.random() < 0.7:
        return spoil_csv(path, rng)
    words = path.read_text().split(" ")
    if not words or rng.random() < 0.4:
        return spoil_bytes(path, rng)
    words[rng.randrange(len(words))] = rng.choice(CELLS)
    path.write_text(" ".join(words), errors="surrogateescape")
    return "word"


def read_lists(folder: Path, rng: random.Random) -> None:
    """The manifest of every dataset that was changed; spans must be finite, and end after they begin."""
    named: KdcacheError | None = None
    for dataset, files in FILES.items():
        if all((folder / dataset / name).read_bytes() == text.encode() for name, text in files.items()):
            continue
        try:
            rows = manifest_for(dataset, folder / dataset, **OPTIONS.get(dataset, {}))
        except KdcacheError as error:
            named = error
            continue
        spans = rows[["start_s", "stop_s"]].to_numpy(float)
        if np.isinf(spans).any() or (spans[:, 0] >= spans[:, 1]).any():
            raise WrongTensor(f"{dataset} has a span that is none")
    if named:
        raise named
