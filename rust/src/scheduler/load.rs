//! The load of a simulation: synthetic requests, or requests read from a trace.

use crate::{Error, Result};

/// A simulated request, described by its sizes instead of its tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulatedRequest {
    /// Arrival time in seconds since the start.
    pub arrival_s: f64,
    /// Prompt length in tokens, at least 1.
    pub prompt_tokens: usize,
    /// Number of tokens to generate, at least 1.
    pub output_tokens: usize,
    /// Shared prefix, as its number and its length in tokens; `None` if the prompt shares none.
    pub prefix: Option<(u64, usize)>,
}

/// Parameters of a synthetic load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SyntheticLoad {
    /// Number of requests.
    pub num_requests: usize,
    /// Mean prompt length in tokens; lengths are geometrically distributed.
    pub mean_prompt_tokens: f64,
    /// Mean number of generated tokens, geometrically distributed.
    pub mean_output_tokens: f64,
    /// Upper bound on prompt and output lengths; longer draws are truncated.
    pub max_tokens: usize,
    /// Request rate of a Poisson process, per second; `None` keeps the queue filled.
    pub rate_per_s: Option<f64>,
    /// Number of shared prefixes, all equally likely; 0 makes every prompt differ from its first token on.
    pub num_prefixes: usize,
    /// Length of a shared prefix in tokens; the rest of a prompt is unique.
    pub prefix_tokens: usize,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl SyntheticLoad {
    /// Generates the requests in order of arrival.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the first field outside its range.
    pub fn requests(self) -> Result<impl Iterator<Item = SimulatedRequest>> {
        for (name, value, min) in [
            ("mean_prompt_tokens", self.mean_prompt_tokens, 1.0),
            ("mean_output_tokens", self.mean_output_tokens, 1.0),
            ("max_tokens", self.max_tokens as f64, 1.0),
            ("rate_per_s", self.rate_per_s.unwrap_or(1.0), 1e-9),
        ] {
            if !(value.is_finite() && value >= min) {
                return Err(Error::InvalidArgument(format!("`{name}` must be at least {min}, got {value}")));
            }
        }
        let mut random = SplitMix64(self.seed);
        let mut clock_s = 0.0;
        Ok((0..self.num_requests).map(move |_| {
            clock_s += self.rate_per_s.map_or(0.0, |rate| -random.log_uniform() / rate);
            let own_tokens = random.geometric(self.mean_prompt_tokens, self.max_tokens);
            let prefix = (self.num_prefixes > 0)
                .then(|| ((random.uniform() * self.num_prefixes as f64) as u64, self.prefix_tokens));
            SimulatedRequest {
                arrival_s: clock_s,
                prompt_tokens: own_tokens + prefix.map_or(0, |(_, tokens)| tokens),
                output_tokens: random.geometric(self.mean_output_tokens, self.max_tokens),
                prefix,
            }
        }))
    }
}

/// Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
pub(super) struct SplitMix64(pub u64);

impl SplitMix64 {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform number in [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Logarithm of a uniform number in (0, 1].
    fn log_uniform(&mut self) -> f64 {
        (-self.uniform()).ln_1p()
    }

    /// Geometric number from 1 on with the given mean, truncated at `max`.
    fn geometric(&mut self, mean: f64, max: usize) -> usize {
        if mean <= 1.0 {
            return 1;
        }
        let exponent = self.log_uniform() / (-1.0 / mean).ln_1p();
        (1.0 + exponent.floor()).min(max as f64) as usize
    }
}
