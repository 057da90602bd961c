"""What benches, studies and the tour train: a transformer on real text, and layers that wait instead of computing."""
