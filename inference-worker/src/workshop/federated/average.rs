//! The average of clients' masters.

/// Adds masters up, weighted; sums in f64, so that the order of clients decides nothing that f32 could show.
pub(super) struct Average {
    sums: Vec<Vec<f64>>,
    weight: f64,
}

impl Average {
    /// Nothing yet, for tensors of these sizes.
    pub(super) fn new(sizes: impl IntoIterator<Item = usize>) -> Self {
        Self { sums: sizes.into_iter().map(|n| vec![0.0; n]).collect(), weight: 0.0 }
    }

    /// Adds one client's masters with its number of samples, at least 1.
    pub(super) fn add(&mut self, masters: &[Vec<f32>], samples: u64) {
        let weight = samples as f64;
        for (sums, values) in self.sums.iter_mut().zip(masters) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += weight * f64::from(*value);
            }
        }
        self.weight += weight;
    }

    /// The weighted mean; at least one client must have been added.
    pub(super) fn finish(self) -> Vec<Vec<f32>> {
        let weight = self.weight;
        self.sums.into_iter().map(|sums| sums.into_iter().map(|sum| (sum / weight) as f32).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workshop::ternary::Ternary;

    #[test]
    fn clients_count_by_their_samples() {
        let mut average = Average::new([2, 1]);
        average.add(&[vec![1.0, -2.0], vec![4.0]], 3);
        average.add(&[vec![5.0, 2.0], vec![0.0]], 1);
        assert_eq!(average.finish(), [vec![2.0, -1.0], vec![3.0]]);
    }

    #[test]
    fn masters_are_averaged_and_then_quantised_not_the_other_way_round() {
        // Two clients lean to +1 in their first weight, one strongly to -1: the masters' mean is -1, a majority of
        // quantised weights would say +1.
        let clients = [[0.6f32, 1.0, -1.0, 1.0], [0.6, 1.0, -1.0, 1.0], [-4.0, 1.0, -1.0, 1.0]];
        let mut masters = Average::new([4]);
        let mut quantised = Average::new([4]);
        for client in clients {
            masters.add(&[client.to_vec()], 1);
            let ternary = Ternary::of(&client);
            quantised.add(&[ternary.weights.iter().map(|w| f32::from(*w)).collect()], 1);
        }
        assert_eq!(Ternary::of(&masters.finish()[0]).weights, [-1, 1, -1, 1]);
        assert!(quantised.finish()[0][0] > 0.0);
    }
}
