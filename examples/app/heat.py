"""Heat in a rod. Writes its state every hundred steps, and goes on from the newest one when it is started again.

    python3 heat.py /scratch 2000
"""

import sys
from array import array

import gridcpr

N = 500


def main() -> None:
    base, last = sys.argv[1], int(sys.argv[2])
    rod = array("d", [0.0] * N)
    rod[0] = 100.0
    step = array("q", [0])
    with gridcpr.Checkpoint("heat-py", base, keep=2) as checkpoint:
        checkpoint.protect("temperature", rod)
        checkpoint.protect("step", step)
        if checkpoint.restore():
            print(f"heat: going on at step {step[0]}", file=sys.stderr)
        while step[0] < last:
            rod[1:-1] = array("d", (rod[i] + 0.3 * (rod[i - 1] - 2 * rod[i] + rod[i + 1]) for i in range(1, N - 1)))
            step[0] += 1
            if step[0] % 100 == 0:
                checkpoint.write()
    print(f"{step[0]} steps, {sum(t * i for i, t in enumerate(rod))!r}")


if __name__ == "__main__":
    main()
