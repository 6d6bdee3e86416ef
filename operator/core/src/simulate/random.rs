use crate::stats::thinning::Draws;

/// A seeded stream of random variates: the same seed gives the same stream on every machine with the same `libm`.
#[derive(Clone, Debug)]
pub struct Random(Draws);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Draws::new(seed, 99))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0.uniform()
    }

    /// True with probability `p`.
    pub fn happens(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Poisson; above a mean of 50 as a rounded normal.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 50.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u64;
        }
        let (limit, mut product, mut n) = ((-mean).exp(), self.uniform(), 0);
        while product > limit {
            product *= self.uniform();
            n += 1;
        }
        n
    }

    /// Gamma with scale 1 (Marsaglia and Tsang).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * self.uniform().powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        x / (x + y)
    }

    /// Binomial, exact: the middle one of `n` uniforms is a Beta variate, and half of them lie on its known side.
    pub fn binomial(&mut self, mut n: u64, mut p: f64) -> u64 {
        let mut sum = 0;
        while n > 24 && p > 0.0 && p < 1.0 {
            let middle = n / 2 + 1;
            let at = self.beta(middle as f64, (n + 1 - middle) as f64);
            if at <= p {
                sum += middle;
                n -= middle;
                p = ((p - at) / (1.0 - at)).clamp(0.0, 1.0);
            } else {
                n = middle - 1;
                p = (p / at).clamp(0.0, 1.0);
            }
        }
        sum + (0..n).filter(|_| self.happens(p)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means and variances of 40,000 variates within 5 standard errors: one false alarm in a million seeds, and the seed
    /// is fixed.
    #[test]
    fn variates_have_their_moments() {
        type Draw = fn(&mut Random) -> f64;
        let cases: [(&str, Draw, f64, f64); 7] = [
            ("normal", Random::normal, 0.0, 1.0),
            ("poisson 3", |r| r.poisson(3.0) as f64, 3.0, 3.0),
            ("poisson 200", |r| r.poisson(200.0) as f64, 200.0, 200.0),
            ("gamma .4", |r| r.gamma(0.4), 0.4, 0.4),
            ("beta", |r| r.beta(2.0, 6.0), 0.25, 0.25 * 0.75 / 9.0),
            ("binomial 10", |r| r.binomial(10, 0.3) as f64, 3.0, 2.1),
            ("binomial 1000", |r| r.binomial(1000, 0.03) as f64, 30.0, 29.1),
        ];
        for (name, draw, mean, variance) in cases {
            let mut random = Random::new(4);
            let n = 40_000.0;
            let all: Vec<f64> = (0..n as u32).map(|_| draw(&mut random)).collect();
            let found = all.iter().sum::<f64>() / n;
            let spread = all.iter().map(|x| (x - found).powi(2)).sum::<f64>() / n;
            assert!((found - mean).abs() < 5.0 * (variance / n).sqrt(), "{name}: mean {found}");
            // Fourth moments differ; none of these needs more than 10 % for 40,000 variates.
            assert!((spread / variance - 1.0).abs() < 0.1, "{name}: variance {spread}");
        }
        let mut random = Random::new(4);
        assert_eq!((random.binomial(500, 0.0), random.binomial(500, 1.0), random.binomial(0, 0.5)), (0, 500, 0));
    }
}
