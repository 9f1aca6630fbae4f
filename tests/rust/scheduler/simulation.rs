//! A scheduler driven with the fake model, checked at each step.

use std::collections::BTreeMap;

use llm_core::scheduler::{LogitsRow, RequestOptions, RowKind, Scheduler, SchedulerConfig, StepPlan};

use super::fake_model::{FakeModel, next_token};

pub const VOCAB: u32 = 50;

/// What is known of each answer, whether it has ended or not.
#[derive(Debug, Clone)]
pub struct Answer {
    pub prompt: Vec<u32>,
    pub choice: u32,
    pub max_tokens: usize,
    /// Priority and order of arrival.
    pub rank: (i32, u64),
    /// Whether any step had tokens of its prompt.
    pub has_begun: bool,
    /// Prompt tokens whose likelihood some row of logits gave.
    pub prompt_rows: Vec<u32>,
    pub first_prompt_row: Option<usize>,
}

/// Runs each request until it has its tokens.
pub struct Simulation {
    pub scheduler: Scheduler,
    pub model: FakeModel,
    pub answers: BTreeMap<u64, Answer>,
    pub finished: BTreeMap<u64, Vec<u32>>,
    num_added: u64,
    /// Guesses a request makes at most.
    pub max_drafts: usize,
}

impl Simulation {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config).unwrap(),
            model: FakeModel::new(config.num_blocks, config.block_size),
            answers: BTreeMap::new(),
            finished: BTreeMap::new(),
            num_added: 0,
            max_drafts: 0,
        }
    }

    pub fn add(&mut self, id: u64, prompt: Vec<u32>, max_tokens: usize) -> llm_core::Result<()> {
        self.add_with(id, prompt, RequestOptions { max_tokens, ..RequestOptions::default() })
    }

    pub fn add_with(&mut self, id: u64, prompt: Vec<u32>, options: RequestOptions) -> llm_core::Result<()> {
        self.scheduler.add(id, prompt.clone(), options)?;
        self.num_added += 1;
        let rank = (options.priority, self.num_added);
        for choice in 0..options.num_choices as u64 {
            let answer = Answer {
                prompt: prompt.clone(),
                choice: choice as u32,
                max_tokens: options.max_tokens,
                rank,
                has_begun: false,
                prompt_rows: Vec::new(),
                first_prompt_row: options.first_prompt_row.filter(|_| options.num_choices == 1),
            };
            self.answers.insert(id + choice, answer);
        }
        Ok(())
    }

    pub fn remove(&mut self, id: u64) -> bool {
        self.answers.remove(&id);
        self.scheduler.remove(id).unwrap()
    }

    pub fn schedule(&mut self) -> Option<StepPlan> {
        let plan = self.scheduler.schedule().unwrap().cloned();
        self.scheduler.check_integrity().unwrap();
        if let Some(plan) = &plan {
            self.check_order(plan);
        }
        plan
    }

    /// Nobody who has not begun is overtaken by one who would come later.
    fn check_order(&mut self, plan: &StepPlan) {
        let planned: Vec<_> = plan.request_ids.iter().filter_map(|id| self.answers.get(id)).collect();
        let begun: Vec<_> = planned.iter().map(|answer| answer.rank).collect();
        let last_to_begin = planned.iter().filter(|answer| !answer.has_begun).map(|answer| answer.rank).max();
        for (id, answer) in self.answers.iter().filter(|(_, answer)| !answer.has_begun) {
            let is_in_turn = begun.contains(&answer.rank) || last_to_begin.is_none_or(|last| answer.rank > last);
            assert!(is_in_turn, "request {id} is overtaken by {last_to_begin:?}: {answer:?}");
        }
        for answer in self.answers.values_mut().filter(|answer| begun.contains(&answer.rank)) {
            answer.has_begun = true;
        }
    }

    pub fn finish_step(&mut self, plan: &StepPlan) {
        let seen = self.model.run(plan);
        let rows = self.scheduler.complete_step().unwrap();
        assert_eq!(rows.len(), plan.logits_indices.len());
        self.scheduler.check_integrity().unwrap();
        let mut last = None;
        for (index, tokens) in seen.into_iter().enumerate() {
            let Some(LogitsRow { id, kind }) = rows[index] else { continue };
            match kind {
                RowKind::Prompt(next) => self.take_prompt_row(id, next, &tokens),
                RowKind::AfterDraft(draft) if last != Some(draft) => last = None,
                _ => {
                    last = self.take_token(id, &tokens);
                    let next = rows.get(index + 1).copied().flatten().map(|row| row.kind);
                    if last.is_some() && next != last.map(RowKind::AfterDraft) {
                        self.guess(id);
                    }
                }
            }
        }
        self.scheduler.check_integrity().unwrap();
    }

    fn take_prompt_row(&mut self, id: u64, next: u32, seen: &[u32]) {
        let answer = self.answers.get_mut(&id).unwrap();
        assert_eq!(answer.prompt[seen.len()], next);
        let Some(first) = answer.first_prompt_row else {
            return; // one of several choices: the first may have been removed midway
        };
        answer.prompt_rows.push(next);
        let num_rows = first + answer.prompt_rows.len();
        assert_eq!(
            (seen, answer.prompt_rows.as_slice()),
            (&answer.prompt[..num_rows], &answer.prompt[first + 1..=num_rows])
        );
    }

    /// The next token of a request that has seen these; `None` if that was its last.
    fn take_token(&mut self, id: u64, seen: &[u32]) -> Option<u32> {
        let answer = &self.answers[&id];
        let request = self.scheduler.request(id).unwrap();
        assert_eq!(seen, [&answer.prompt, request.output_ids()].concat());
        assert_eq!(seen, request.tokens());
        let token = token_after(seen, answer.choice);
        self.scheduler.append_token(id, token).unwrap();
        let output = self.scheduler.request(id).unwrap().output_ids().to_vec();
        if output.len() == answer.max_tokens {
            self.finished.insert(id, output);
            self.scheduler.remove(id).unwrap();
            return None;
        }
        Some(token)
    }

    /// Guesses, of which some are right: how many depends on the tokens.
    fn guess(&mut self, id: u64) {
        let request = self.scheduler.request(id).unwrap();
        let max_drafts = self.answers[&id].max_tokens - request.output_ids().len() - 1;
        let mut tokens = request.tokens().to_vec();
        let num_known = tokens.len();
        let (num_drafts, num_right) = (num_known * 7 % 5, num_known % 4);
        for index in 0..num_drafts.min(max_drafts).min(self.max_drafts) {
            let right = token_after(&tokens, self.answers[&id].choice);
            tokens.push(if index < num_right { right } else { (right + 1) % VOCAB });
        }
        self.scheduler.set_drafts(id, &tokens[num_known..]).unwrap();
    }

    pub fn step(&mut self) -> Option<StepPlan> {
        let plan = self.schedule()?;
        self.finish_step(&plan);
        Some(plan)
    }

    /// Steps until nothing is left, and not more of them than it takes if only one request advances in each.
    ///
    /// Twice: a running request that advances may lose it to one that comes before it in the queue.
    pub fn run_out(&mut self) {
        let unfinished = self.answers.iter().filter(|(id, _)| !self.finished.contains_key(id));
        let mut left: usize = unfinished.map(|(_, answer)| 2 * (answer.prompt.len() + answer.max_tokens)).sum();
        while self.scheduler.has_unfinished() {
            assert!(left > 0, "a request starves");
            left -= 1;
            assert!(self.step().is_some(), "requests are left but nothing runs");
        }
        let stats = self.scheduler.stats();
        assert_eq!(stats.blocks_free, stats.blocks_total);
        assert_eq!((stats.num_running, stats.num_waiting, stats.waiting_tokens), (0, 0, 0));
    }

    /// Checks each answer against what its request gets alone.
    pub fn check_answers(&self) {
        for (id, answer) in &self.answers {
            assert_eq!(self.finished[id], alone(&answer.prompt, answer.max_tokens, answer.choice), "request {id}");
            let wanted = answer.first_prompt_row.and_then(|first| answer.prompt.get(first + 1..)).unwrap_or_default();
            assert_eq!(answer.prompt_rows, wanted, "request {id}");
        }
    }
}

fn token_after(tokens: &[u32], choice: u32) -> u32 {
    (next_token(tokens, VOCAB) + choice) % VOCAB
}

/// What a request gets without a scheduler.
pub fn alone(prompt: &[u32], max_tokens: usize, choice: u32) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_tokens {
        tokens.push(token_after(&tokens, choice));
    }
    tokens.split_off(prompt.len())
}

/// A prompt; those of one family begin the same, as far as both go.
pub fn prompt(family: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|position| ((family * 31 + position * 17) % u64::from(VOCAB)) as u32).collect()
}
