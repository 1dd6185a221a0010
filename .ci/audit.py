"""Ask for known vulnerabilities of all installed packages; part of `make check`.

Exit code 1 where one is found that EXCEPTIONS does not argue away. A package that the service of pip-audit does not
know is counted and not audited; where that is all of them, the service cannot be reached, and the last line says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

EXCEPTIONS: dict[str, str] = {}
"""Identifier of a vulnerability: why it cannot be used against this project."""


def main() -> int:
    """Run pip-audit and print what it found."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  # a fixed list of words, no shell
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(f"pip-audit gave no report: {done.stderr.strip()[-500:]}")
        return 1
    lines, is_safe = judged(report)
    print("\n".join(lines))
    return 0 if is_safe else 1


def judged(report: dict[str, Any]) -> tuple[list[str], bool]:
    """Lines to print about a report of pip-audit, and whether nothing in it is left to mend."""
    packages = report["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    found = [(package, vulnerability) for package in audited for vulnerability in package["vulns"]]
    lines, is_safe = [], True
    for package, vulnerability in found:
        names = {vulnerability["id"], *vulnerability.get("aliases", ())}
        reason = next((EXCEPTIONS[name] for name in names if name in EXCEPTIONS), None)
        is_safe &= reason is not None
        mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        lines.append(
            f"{package['name']} {package['version']}: {vulnerability['id']}, mended in {mended}; {reason or ''}"
        )
    lines.append(f"{len(audited)} of {len(packages)} packages audited, {len(found)} known vulnerabilities")
    if not audited:
        lines.append("NOT AUDITED: the service that knows vulnerabilities answers for none of them from this machine")
    return lines, is_safe


if __name__ == "__main__":
    sys.exit(main())
