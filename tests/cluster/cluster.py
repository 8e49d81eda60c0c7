"""SLURM on this machine: a controller, two nodes of two cores each, and munge, without systemd and without root.

`python tests/cluster/cluster.py COMMAND ...` brings it up, runs the command in it (`bash` to look around) and takes
everything down again. Debian has all of it: apt-get install slurmctld slurmd slurm-client munge.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
CONF = """
ClusterName=twoview
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=SBIN)]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Lends the environment in which SLURM's commands find the cluster, whose files lie in `folder`."""
    host, key = socket.gethostname().split(".")[0], folder / "munge.key"
    folder.chmod(0o700)
    (folder / "state").mkdir()
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    (folder / "slurm.conf").write_text(CONF.format(host=host, user=getpass.getuser(), folder=folder, ports=_ports(3)))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\nIgnoreSystemd=yes\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {"PATH": SBIN, "SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    files = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    munged = [f"--{option}={folder}/{name}" for option, name in (files | {"seed-file": "munge.seed"}).items()]
    with ExitStack() as daemons:
        for command in (
            ["munged", "--force", "--foreground", *munged],
            ["slurmctld", "-D"],
            *(["slurmd", "-D", "-N", name] for name in ("one", "two")),
        ):
            daemons.enter_context(_daemon(command, environment, folder))
            time.sleep(0.5)
        _wait(environment, folder)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
            time.sleep(1)


@contextmanager
def _daemon(command: Sequence[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{command[0]}.{command[-1].strip('-')[:3]}.out").open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(environment: dict[str, str], folder: Path) -> None:
    """Until both nodes wait for work."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = subprocess.run(["sinfo", "-h", "-o", "%D %t"], env=environment, capture_output=True, text=True)
        if found.stdout.split() == ["2", "idle"]:
            return
        time.sleep(0.5)
    logs = "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"SLURM did not come up: {found.stdout}{found.stderr}\n{logs}")


def _ports(number: int) -> list[int]:
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in free:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in free]


if __name__ == "__main__":
    if missing():
        sys.exit(f"not installed: {', '.join(missing())} (Debian: slurmctld slurmd slurm-client munge)")
    with tempfile.TemporaryDirectory() as place, cluster(Path(place)) as found:
        sys.exit(subprocess.run(sys.argv[1:] or ["sinfo"], env=found, check=False).returncode)
