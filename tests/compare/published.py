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
