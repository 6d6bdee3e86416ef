use crate::stats::thinning::Draws;

/// A seeded stream of random variates: the same seed gives the same stream on every machine with the same `libm`.
#[derive(Clone, Debug)]
pub struct Random {
    draws: Draws,
    /// Normals come in twos.
    spare: Option<f64>,
}

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { draws: Draws::new(seed, 99), spare: None }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.draws.bits()
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.draws.uniform()
    }

    /// True with probability `p`.
    pub fn happens(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Marsaglia's polar method).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (u, v) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let square = u * u + v * v;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(v * scale);
                return u * scale;
            }
        }
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
            if v <= 0.0 {
                continue;
            }
            let u = self.uniform();
            // The first condition implies the second and spares nearly all of its logarithms.
            if u < 1.0 - 0.0331 * x.powi(4) || u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        x / (x + y)
    }

    /// Binomial, exact: by inversion where few are expected; otherwise the middle one of `n` uniforms is a Beta variate, and
    /// half of them lie on its known side.
    pub fn binomial(&mut self, mut n: u64, mut p: f64) -> u64 {
        let mut sum = 0;
        while n > 0 && p > 0.0 {
            if p >= 1.0 {
                return sum + n;
            }
            if p > 0.5 {
                return sum + n - self.binomial(n, 1.0 - p);
            }
            if n as f64 * p <= 12.0 {
                return sum + self.few(n, p);
            }
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
        sum
    }

    /// Binomial by inversion, for n·p of at most some tens.
    fn few(&mut self, n: u64, p: f64) -> u64 {
        let odds = p / (1.0 - p);
        let mut probability = (n as f64 * (-p).ln_1p()).exp();
        let (mut rest, mut k) = (self.uniform() - probability, 0);
        while rest >= 0.0 && k < n {
            probability *= odds * (n - k) as f64 / (k + 1) as f64;
            k += 1;
            rest -= probability;
        }
        k
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
        let cases: [(&str, Draw, f64, f64); 10] = [
            ("normal", Random::normal, 0.0, 1.0),
            ("poisson 3", |r| r.poisson(3.0) as f64, 3.0, 3.0),
            ("poisson 200", |r| r.poisson(200.0) as f64, 200.0, 200.0),
            ("gamma .4", |r| r.gamma(0.4), 0.4, 0.4),
            ("beta", |r| r.beta(2.0, 6.0), 0.25, 0.25 * 0.75 / 9.0),
            ("binomial 10", |r| r.binomial(10, 0.3) as f64, 3.0, 2.1),
            ("binomial 1000", |r| r.binomial(1000, 0.03) as f64, 30.0, 29.1),
            ("binomial 1000, rare", |r| r.binomial(1000, 0.002) as f64, 2.0, 1.996),
            ("binomial 400, mostly", |r| r.binomial(400, 0.9) as f64, 360.0, 36.0),
            ("gamma 9", |r| r.gamma(9.0), 9.0, 9.0),
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
