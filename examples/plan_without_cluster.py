"""Plans for a cluster that one does not have: 8 and 64 workers, links of 10 Gb/s. No torch is needed."""

import tightwire as tw


def main() -> None:
    profile = tw.Profile.uniform(layers=48, numel_per_layer=2_000_000, forward_s=0.08, backward_s=0.16)
    for workers in (8, 64):
        cluster = tw.Cluster.uniform(workers, 10e9 / 8 * 0.956, 3e-5)  # 0.956 of a TCP link's rate is payload
        ranking = tw.recommend(profile, cluster, allow="lossy")
        stock = tw.predict("bsp", profile, cluster)
        print(f"{workers} workers: {ranking.chosen.plan}")
        print(f"    {ranking.chosen.step_s:.3f} s a step instead of {stock.step_s:.3f} s")


if __name__ == "__main__":
    main()
