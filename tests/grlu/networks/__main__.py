"""Check random networks: `python -m tests.grlu.networks --count 10000 --seed 0`."""

from tests.grlu.networks.long_run import main

if __name__ == "__main__":
    main()
