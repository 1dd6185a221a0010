"""The whole attack: ``python -m tests.attack`` tries every case, and tells how many held and which failed.

``python -m tests.attack WORDS`` tries those whose name holds one of the words, and ``--quick`` those of every build.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections import Counter, defaultdict

from tests.attack.cases import FileCase, chosen
from tests.attack.trial import Trial
from tests.attack.world import Skipped


def main(words: list[str]) -> int:
    """Try cases, print a line for each that does not hold, and a table; 1 if any failed."""
    is_quick = "--quick" in words
    wanted = [word.lower() for word in words if not word.startswith("--")]
    cases = {
        key: one
        for key, one in chosen(not is_quick).items()
        if not wanted or any(word in key.lower() for word in wanted)
    }
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with Trial(cases) as trial:
        for group in trial.groups:
            _count(counts[group], f"{group}: all of them in one folder", lambda group=group: trial.together(group))  # type: ignore[misc]
        for key, one in cases.items():
            _count(counts[one.group], key, lambda key=key: trial.alone(key))  # type: ignore[misc]
    _print(counts, sum(isinstance(one, FileCase) for one in cases.values()))
    return 1 if any(count["failed"] for count in counts.values()) else 0


def _count(count: Counter[str], key: str, attempt) -> None:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    try:
        attempt()
    except Skipped as why:
        count["skipped"] += 1
        print(f"skipped  {key}: {why}", flush=True)
        return
    except AssertionError as error:
        count["failed"] += 1
        print(f"FAILED   {key}\n{_indented(str(error) or traceback.format_exc())}", flush=True)
    except Exception:  # a case that is itself at fault
        count["failed"] += 1
        print(f"FAILED   {key}\n{_indented(traceback.format_exc())}", flush=True)
    else:
        count["held"] += 1
    finally:
        count["tried"] += 1
        count["seconds"] += time.monotonic() - began  # type: ignore[assignment]


def _indented(text: str) -> str:
    lines = text.strip().splitlines()
    shown = lines if len(lines) <= 30 else [*lines[:12], "...", *lines[-16:]]
    return "\n".join(f"         {line[:300]}" for line in shown)


def _print(counts: dict[str, Counter[str]], files: int) -> None:
    total: Counter[str] = Counter()
    print(f"\n{'':24}{'tried':>8}{'held':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for group, count in counts.items():
        total += count
        _line(group, count)
    _line("all", total)
    print(f"{files} of these are files of their own kind.")


def _line(name: str, count: Counter[str]) -> None:
    numbers = "".join(f"{count[column]:>8}" for column in ("tried", "held", "failed", "skipped"))
    print(f"{name:24}{numbers}{count['seconds']:>9.1f}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so what was started and made is taken away
    sys.exit(main(sys.argv[1:]))
