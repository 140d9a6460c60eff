"""The kinds of rooms of generated games: their furniture, and which objects stand on it, with weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Room:
    """A kind of room.

    `receptacles`: how many of a type, at ten equally likely levels over the scenes. `objects` and `fixtures`
    (never picked up): type -> (chance that a scene has it, most in one game, places). Places and `targets`
    are `Receptacle:weight ...`; `lamp` says where a desk lamp stands.
    """

    first_scene: int
    receptacles: Mapping[str, str]
    objects: Mapping[str, tuple[float, int, str]]
    fixtures: Mapping[str, tuple[float, int, str]] = field(default_factory=dict)
    targets: str = ""
    lamp: str = ""


@functools.cache
def weights(places: str) -> dict[str, int]:
    """`"Bed:52 Desk:19"` as a mapping."""
    return {kind: int(weight) for kind, weight in (entry.split(":") for entry in places.split())}


ROOMS: dict[str, Room] = {
    "Kitchen": Room(
        first_scene=1,
        receptacles={
            "SinkBasin": "1 1 1 1 1 1 1 1 1 1",
            "Cabinet": "4 8 10 10 12 13 16 20 20 26",
            "CoffeeMachine": "1 1 1 1 1 1 1 1 1 1",
            "Toaster": "1 1 1 1 1 1 1 1 1 1",
            "CounterTop": "1 1 2 2 2 2 3 3 3 4",
            "Microwave": "1 1 1 1 1 1 1 1 1 1",
            "StoveBurner": "4 4 4 4 4 4 4 4 4 4",
            "Fridge": "1 1 1 1 1 1 1 1 1 1",
            "GarbageCan": "1 1 1 1 1 1 1 1 1 1",
            "Drawer": "1 3 3 3 4 5 6 7 9 13",
            "DiningTable": "0 0 0 0 0 1 1 1 1 2",
            "Shelf": "0 0 0 0 0 0 0 0 3 3",
            "SideTable": "0 0 0 0 0 0 0 0 0 1",
        },
        objects={
            "Apple": (
                1.0,
                3,
                "Fridge:25 CounterTop:24 DiningTable:14 GarbageCan:13 Microwave:13 SinkBasin:9",
            ),
            "Bowl": (1.0, 3, "Cabinet:35 Fridge:21 CounterTop:21 DiningTable:15 SinkBasin:3"),
            "Bread": (1.0, 2, "CounterTop:56 DiningTable:30 Fridge:13"),
            "ButterKnife": (1.0, 3, "CounterTop:59 DiningTable:26 Drawer:8 SinkBasin:6"),
            "Cup": (1.0, 3, "Cabinet:23 Fridge:21 CounterTop:21 DiningTable:14 SinkBasin:10 Microwave:7"),
            "DishSponge": (
                1.0,
                3,
                "CounterTop:26 Cabinet:24 Drawer:21 DiningTable:13 SinkBasin:7 GarbageCan:5",
            ),
            "Egg": (1.0, 3, "Fridge:25 CounterTop:24 SinkBasin:13 GarbageCan:13 Microwave:12 DiningTable:11"),
            "Fork": (1.0, 3, "CounterTop:44 DiningTable:23 Drawer:22 SinkBasin:9"),
            "Knife": (1.0, 3, "CounterTop:50 DiningTable:24 Drawer:20 SinkBasin:5"),
            "Lettuce": (1.0, 3, "CounterTop:42 DiningTable:28 Fridge:24 SinkBasin:5"),
            "Mug": (
                1.0,
                3,
                "CounterTop:28 CoffeeMachine:17 Cabinet:16 Fridge:14 DiningTable:10 Microwave:7 SinkBasin:6",
            ),
            "Pan": (1.0, 2, "StoveBurner:53 CounterTop:32 Cabinet:7 DiningTable:4 Fridge:4"),
            "PepperShaker": (1.0, 3, "Cabinet:33 CounterTop:30 DiningTable:16 Drawer:15 Shelf:4"),
            "Plate": (1.0, 3, "Cabinet:40 CounterTop:30 DiningTable:15 Fridge:10"),
            "Pot": (1.0, 2, "StoveBurner:74 CounterTop:14 Fridge:4 DiningTable:4 Cabinet:3"),
            "Potato": (
                1.0,
                3,
                "CounterTop:29 Fridge:26 DiningTable:16 SinkBasin:11 Microwave:10 GarbageCan:7",
            ),
            "SaltShaker": (1.0, 3, "Cabinet:31 CounterTop:31 DiningTable:17 Drawer:15 Shelf:4"),
            "SoapBottle": (1.0, 3, "CounterTop:32 Cabinet:31 DiningTable:20 GarbageCan:11 Shelf:4"),
            "Spatula": (1.0, 3, "CounterTop:45 DiningTable:24 Drawer:21 SinkBasin:9"),
            "Spoon": (1.0, 3, "CounterTop:38 Drawer:28 DiningTable:21 SinkBasin:12"),
            "Tomato": (1.0, 3, "Fridge:33 CounterTop:30 DiningTable:19 GarbageCan:9 SinkBasin:7"),
            "Kettle": (0.5, 3, "StoveBurner:41 CounterTop:26 Cabinet:24 DiningTable:7"),
            "Ladle": (0.4, 3, "CounterTop:42 Cabinet:24 Drawer:18 DiningTable:14"),
            "WineBottle": (0.4, 3, "CounterTop:36 Cabinet:25 DiningTable:24 GarbageCan:9 Shelf:3"),
            "Glassbottle": (0.2, 3, "Cabinet:34 CounterTop:31 DiningTable:13 SinkBasin:10 Fridge:8 Shelf:5"),
            "Book": (0.1, 2, "CounterTop:64 Cabinet:15 DiningTable:12 Drawer:6 Shelf:4"),
            "CellPhone": (0.1, 3, "CounterTop:47 Drawer:37 DiningTable:12 Shelf:4"),
            "CreditCard": (0.1, 3, "CounterTop:46 Drawer:34 Shelf:20"),
            "Pen": (0.1, 3, "CounterTop:40 DiningTable:36 Drawer:20 GarbageCan:4"),
            "Pencil": (0.1, 3, "Drawer:41 CounterTop:30 DiningTable:20 GarbageCan:9"),
            "SprayBottle": (0.1, 3, "CounterTop:33 Cabinet:32 DiningTable:23 GarbageCan:12"),
            "Statue": (0.1, 2, "CounterTop:55 Shelf:41 DiningTable:4"),
            "Vase": (0.1, 3, "CounterTop:33 Cabinet:32 Shelf:32"),
        },
        fixtures={
            "HousePlant": (0.4, 1, "CounterTop:80 DiningTable:20"),
        },
        targets="CounterTop:15 DiningTable:15 Cabinet:12 Microwave:10 Fridge:10 CoffeeMachine:8 "
        "GarbageCan:7 Drawer:6 Shelf:6 SideTable:6",
    ),
    "LivingRoom": Room(
        first_scene=201,
        receptacles={
            "GarbageCan": "1 1 1 1 1 1 1 1 1 1",
            "Sofa": "1 1 1 1 1 1 1 1 2 2",
            "ArmChair": "0 1 1 1 1 1 1 2 2 2",
            "CoffeeTable": "0 0 1 1 1 1 1 1 2 2",
            "SideTable": "0 0 1 1 1 1 2 2 3 3",
            "Drawer": "0 0 1 1 2 4 4 6 7 12",
            "DiningTable": "0 0 0 0 0 1 1 1 1 2",
            "TVStand": "0 0 0 0 0 0 1 1 1 2",
            "Shelf": "0 0 0 0 0 0 2 5 8 13",
            "Dresser": "0 0 0 0 0 0 1 1 1 1",
            "Ottoman": "0 0 0 0 0 0 0 0 0 1",
            "Cabinet": "0 0 0 0 0 0 0 0 0 4",
            "Safe": "0 0 0 0 0 0 0 0 0 1",
        },
        objects={
            "Box": (
                1.0,
                2,
                "DiningTable:26 Sofa:25 CoffeeTable:22 SideTable:8 Cabinet:6 Dresser:5 Shelf:4 ArmChair:3",
            ),
            "CreditCard": (
                1.0,
                3,
                "Sofa:20 CoffeeTable:16 ArmChair:14 Drawer:13 SideTable:12 DiningTable:10 Dresser:7 Shelf:6",
            ),
            "KeyChain": (
                1.0,
                3,
                "CoffeeTable:20 SideTable:18 Drawer:17 Sofa:13 ArmChair:10 DiningTable:8 Dresser:7 Shelf:5",
            ),
            "Laptop": (1.0, 2, "Sofa:29 CoffeeTable:25 DiningTable:22 Dresser:9 SideTable:8 ArmChair:6"),
            "Pillow": (1.0, 1, "Sofa:79 ArmChair:21"),
            "RemoteControl": (
                1.0,
                3,
                "CoffeeTable:25 Sofa:21 SideTable:14 DiningTable:11 Dresser:10 ArmChair:9 Drawer:4 Shelf:4",
            ),
            "Statue": (1.0, 3, "CoffeeTable:27 Shelf:22 DiningTable:21 SideTable:21 Dresser:9"),
            "Newspaper": (
                0.6,
                3,
                "Sofa:21 CoffeeTable:17 DiningTable:17 SideTable:14 Shelf:11 Dresser:8 ArmChair:7",
            ),
            "Vase": (0.6, 3, "Shelf:39 CoffeeTable:20 DiningTable:15 SideTable:12 Dresser:11"),
            "Watch": (0.5, 3, "CoffeeTable:27 Drawer:22 SideTable:20 Dresser:12 DiningTable:12 Shelf:5"),
            "Plate": (0.4, 2, "DiningTable:52 CoffeeTable:23 Shelf:14 SideTable:10"),
            "WateringCan": (0.4, 1, "CoffeeTable:55 Shelf:37 SideTable:8"),
            "TissueBox": (0.3, 3, "CoffeeTable:33 SideTable:19 DiningTable:19 Shelf:11 TVStand:7 Dresser:4"),
            "Book": (0.2, 2, "CoffeeTable:28 Dresser:24 Sofa:17 ArmChair:11 SideTable:9 DiningTable:9"),
            "CellPhone": (
                0.2,
                3,
                "Dresser:20 SideTable:17 CoffeeTable:15 Sofa:13 Drawer:12 DiningTable:8 ArmChair:8",
            ),
            "Pen": (
                0.2,
                3,
                "CoffeeTable:36 SideTable:23 Dresser:23 Drawer:6 GarbageCan:4 DiningTable:4 Shelf:4",
            ),
            "Bowl": (0.1, 2, "DiningTable:48 CoffeeTable:32 SideTable:10 Shelf:10"),
            "Candle": (0.1, 3, "SideTable:42 CoffeeTable:29 DiningTable:22 Dresser:3 Drawer:3"),
            "Pencil": (
                0.1,
                3,
                "SideTable:36 CoffeeTable:31 Drawer:10 Dresser:7 GarbageCan:6 Shelf:6 DiningTable:4",
            ),
        },
        fixtures={
            "HousePlant": (0.6, 1, "SideTable:52 CoffeeTable:27 Dresser:10 DiningTable:6 TVStand:5"),
            "Television": (0.7, 1, "TVStand:45 Dresser:43 CoffeeTable:10 SideTable:2"),
        },
        targets="ArmChair:26 Sofa:24 CoffeeTable:22 Ottoman:8 Dresser:5 SideTable:4 Drawer:3 Safe:3 "
        "DiningTable:2 GarbageCan:2 Shelf:1",
        lamp="SideTable:91 CoffeeTable:9",
    ),
    "Bedroom": Room(
        first_scene=301,
        receptacles={
            "Bed": "1 1 1 1 1 1 1 1 1 2",
            "GarbageCan": "1 1 1 1 1 1 1 1 1 1",
            "Drawer": "2 2 2 3 4 5 6 10 11 16",
            "Shelf": "0 0 0 1 1 2 5 6 7 12",
            "Desk": "0 0 0 1 1 1 1 1 1 2",
            "SideTable": "0 0 0 0 1 1 1 1 2 2",
            "Dresser": "0 0 0 0 0 1 1 1 1 2",
            "LaundryHamper": "0 0 0 0 0 0 0 1 1 1",
            "ArmChair": "0 0 0 0 0 0 0 0 1 2",
            "Safe": "0 0 0 0 0 0 0 0 1 1",
            "Cabinet": "0 0 0 0 0 0 0 0 0 4",
            "DiningTable": "0 0 0 0 0 0 0 0 0 1",
        },
        objects={
            "AlarmClock": (1.0, 2, "Desk:34 Shelf:22 SideTable:19 Dresser:17 DiningTable:7"),
            "Book": (1.0, 3, "Bed:52 Desk:19 Drawer:12 Dresser:5 SideTable:4"),
            "CD": (1.0, 3, "Drawer:29 Desk:21 Dresser:14 SideTable:13 GarbageCan:9 Shelf:8 DiningTable:6"),
            "CellPhone": (
                1.0,
                3,
                "Bed:29 Desk:18 Drawer:17 Dresser:10 SideTable:9 Shelf:8 DiningTable:3 ArmChair:3",
            ),
            "CreditCard": (
                1.0,
                3,
                "Drawer:30 Desk:18 Shelf:17 SideTable:16 Dresser:12 ArmChair:3 DiningTable:3",
            ),
            "KeyChain": (1.0, 3, "Drawer:26 Desk:18 Shelf:15 SideTable:15 Dresser:13 Safe:5 DiningTable:4"),
            "Laptop": (1.0, 2, "Bed:74 Desk:19 Dresser:3"),
            "Pen": (1.0, 3, "Desk:28 Drawer:19 Shelf:16 Dresser:15 SideTable:14 DiningTable:6"),
            "Pencil": (
                1.0,
                3,
                "Desk:24 Drawer:18 Shelf:17 SideTable:17 Dresser:11 DiningTable:6 GarbageCan:5",
            ),
            "Pillow": (1.0, 2, "Bed:99"),
            "Bowl": (0.5, 2, "Desk:46 Shelf:30 Dresser:13 DiningTable:6 SideTable:4"),
            "Mug": (0.5, 3, "Desk:38 Shelf:19 SideTable:15 Dresser:14 DiningTable:9 Cabinet:4"),
            "Box": (0.4, 1, "Desk:56 Shelf:44"),
            "RemoteControl": (0.1, 3, "Drawer:34 Desk:29 SideTable:15 CounterTop:8 ArmChair:6 DiningTable:4"),
            "Statue": (0.1, 2, "Shelf:43 Dresser:27 Desk:24 SideTable:5"),
            "TissueBox": (0.1, 3, "Desk:38 Drawer:24 DiningTable:15 Shelf:12 SideTable:10"),
            "Vase": (0.1, 3, "Shelf:46 Dresser:34 Desk:11 SideTable:9"),
            "Watch": (0.1, 3, "Drawer:31 Shelf:20 DiningTable:16 Desk:15 Dresser:12 SideTable:6"),
        },
        fixtures={
            "HousePlant": (0.3, 1, "Shelf:42 Desk:33 Cabinet:16 Dresser:9"),
        },
        targets="Desk:23 Dresser:14 Shelf:13 SideTable:13 Bed:10 Drawer:10 Safe:5 DiningTable:5 ArmChair:4 "
        "GarbageCan:2",
        lamp="Desk:37 SideTable:27 Dresser:23 Shelf:13",
    ),
    "Bathroom": Room(
        first_scene=401,
        receptacles={
            "ToiletPaperHanger": "1 1 1 1 1 1 1 1 1 1",
            "HandTowelHolder": "1 1 1 1 1 1 2 2 2 2",
            "SinkBasin": "1 1 1 1 1 2 2 2 2 2",
            "GarbageCan": "1 1 1 1 1 1 1 1 1 1",
            "Toilet": "1 1 1 1 1 1 1 1 1 1",
            "TowelHolder": "1 1 1 1 1 1 1 2 2 2",
            "CounterTop": "0 1 1 1 1 1 1 1 1 2",
            "BathtubBasin": "0 0 0 1 1 1 1 1 1 1",
            "Drawer": "0 0 0 0 0 2 4 4 6 8",
            "Cabinet": "0 0 0 0 0 3 4 4 4 5",
            "Shelf": "0 0 0 0 0 0 0 1 1 3",
            "Cart": "0 0 0 0 0 0 0 0 0 1",
            "Dresser": "0 0 0 0 0 0 0 0 0 1",
            "SideTable": "0 0 0 0 0 0 0 0 0 1",
        },
        objects={
            "Candle": (1.0, 3, "CounterTop:31 Toilet:30 Cabinet:14 Drawer:12 Shelf:7"),
            "Cloth": (
                1.0,
                3,
                "BathtubBasin:29 Cabinet:22 CounterTop:16 Drawer:15 SinkBasin:8 Shelf:5 Toilet:3",
            ),
            "HandTowel": (1.0, 1, "HandTowelHolder:96 CounterTop:4"),
            "SoapBar": (
                1.0,
                3,
                "CounterTop:21 Toilet:16 SinkBasin:15 Cabinet:12 BathtubBasin:11 Drawer:11 GarbageCan:7 "
                "Shelf:4",
            ),
            "SoapBottle": (1.0, 3, "CounterTop:31 Toilet:24 Cabinet:22 Shelf:9 GarbageCan:9"),
            "SprayBottle": (1.0, 3, "CounterTop:32 Toilet:26 Cabinet:17 GarbageCan:10 Shelf:7 Cart:4"),
            "ToiletPaper": (
                1.0,
                3,
                "Toilet:24 CounterTop:22 Cabinet:12 ToiletPaperHanger:12 Drawer:11 GarbageCan:9 Shelf:6",
            ),
            "Towel": (1.0, 1, "TowelHolder:100"),
            "DishSponge": (
                0.2,
                3,
                "BathtubBasin:19 CounterTop:19 Drawer:18 SinkBasin:10 Shelf:9 Toilet:9 Cart:6 Cabinet:5 "
                "GarbageCan:4",
            ),
            "TissueBox": (0.2, 3, "CounterTop:35 Shelf:30 Drawer:19 Cabinet:5 Cart:4 SideTable:4"),
        },
        fixtures={},
        targets="Toilet:28 GarbageCan:16 Cabinet:14 CounterTop:12 Drawer:12 ToiletPaperHanger:7 Cart:6 "
        "Shelf:3 SideTable:1",
    ),
}
