"""Tables 1 and 2 of Duan et al. (2016), typed here once more than in the demos."""

PUBLISHED = {  # Duan et al. (2016), Table 1: means over 1000 tasks
    (10, 5): dict(random=5.0, gittins=6.6, ts=5.7, ots=6.5, ucb1=6.7, egreedy=6.6, greedy=6.6),
    (10, 10): dict(random=5.0, gittins=6.6, ts=5.5, ots=6.2, ucb1=6.7, egreedy=6.6, greedy=6.6),
    (100, 5): dict(
        random=49.9, gittins=78.3, ts=74.7, ots=77.9, ucb1=78.0, egreedy=75.4, greedy=74.8
    ),
    (100, 10): dict(
        random=49.9, gittins=82.8, ts=76.7, ots=81.4, ucb1=82.4, egreedy=77.4, greedy=77.1
    ),
}

PUBLISHED_MDPS = {  # Duan et al. (2016), Table 2
    10: dict(
        random=100.1, psrl=138.1, opsrl=144.1, ucrl2=146.6, beb=150.2, egreedy=132.8, greedy=134.8
    ),
    25: dict(
        random=250.2, psrl=408.8, opsrl=425.2, ucrl2=424.1, beb=427.8, egreedy=377.3, greedy=368.8
    ),
}

# All of both tables, and MAML of Mishra et al. (2018), Tables 3 and 4, as they are printed; of MDPs
# MAML's is a share of what value iteration gets.
BANDIT_LINES = """
n    k  random gittins ts    ots   ucb1  egreedy greedy rl2   maml
10   5  5.0    6.6     5.7   6.5   6.7   6.6     6.6    6.7   6.5
10   10 5.0    6.6     5.5   6.2   6.7   6.6     6.6    6.7   6.6
10   50 5.1    6.5     5.2   5.5   6.6   6.5     6.5    6.8   6.6
100  5  49.9   78.3    74.7  77.9  78.0  75.4    74.8   78.7  67.1
100  10 49.9   82.8    76.7  81.4  82.4  77.4    77.1   83.5  70.1
100  50 49.8   85.2    64.5  67.7  84.3  78.3    78.0   84.9  70.3
500  5  249.8  405.8   402.0 406.7 405.8 388.2   380.6  401.6 -
500  10 249.0  437.8   429.5 438.9 437.1 408.0   395.0  432.5 -
500  50 249.6  463.7   427.2 437.6 457.6 413.6   402.8  438.9 -
"""
MDP_LINES = """
n   random psrl   opsrl  ucrl2  beb    egreedy greedy rl2
10  100.1  138.1  144.1  146.6  150.2  132.8   134.8  156.2
25  250.2  408.8  425.2  424.1  427.8  377.3   368.8  445.7
50  499.7  904.4  930.7  918.9  917.8  823.3   769.3  936.1
75  749.9  1417.1 1449.2 1427.6 1422.6 1293.9  1172.9 1428.8
100 999.4  1939.5 1973.9 1942.1 1935.1 1778.2  1578.5 1913.7
"""


def printed(lines):
    """The rows of a printed table, a dictionary each."""
    head, *rows = (line.split() for line in lines.strip().splitlines())
    numbers = (dict(zip(head, row)) for row in rows)
    return [{name: float(x) for name, x in row.items() if x != "-"} for row in numbers]
