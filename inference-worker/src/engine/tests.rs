use super::*;
use std::sync::Mutex;
use std::thread::sleep;
use tokio::sync::mpsc::UnboundedReceiver;

const VOCABULARY: usize = 16;
/// Reading it gives a row with one NaN.
const BROKEN: u32 = 13;
/// Reading it panics.
const FATAL: u32 = 14;
/// Reading it is refused.
const REFUSED: u32 = 15;

/// Counts up: after token t the most likely one is t + 1, and position p is in the row as well. Remembers the sizes of
/// its passes.
struct Counting {
    pass: Duration,
    sizes: Arc<Mutex<Vec<Vec<usize>>>>,
}

impl Network for Counting {
    type Cache = Vec<u32>;

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn new_cache(&self, capacity: usize) -> Vec<u32> {
        Vec::with_capacity(capacity)
    }

    fn fork(&self, cache: &Vec<u32>, len: usize, capacity: usize) -> Vec<u32> {
        let mut fork = Vec::with_capacity(capacity);
        fork.extend(&cache[..len]);
        fork
    }

    fn bytes_per_pass(&self) -> usize {
        100
    }

    fn forward(&self, turns: &mut [Turn<'_, Vec<u32>>]) -> Result<(), String> {
        self.sizes.lock().unwrap().push(turns.iter().map(|t| t.tokens.len()).collect());
        sleep(self.pass);
        if turns.iter().any(|t| t.tokens.contains(&REFUSED)) {
            return Err("refused".to_owned());
        }
        for turn in turns {
            assert!(!turn.tokens.contains(&FATAL), "the model panics");
            let before = turn.cache.len();
            turn.cache.extend(turn.tokens);
            for &at in turn.want {
                let token = turn.tokens[at as usize];
                let mut row = vec![0.0; VOCABULARY];
                row[0] = (before + at as usize) as f32 / 1000.0;
                row[(token as usize + 1) % VOCABULARY] = 1.0;
                if token == BROKEN {
                    row[0] = f32::NAN;
                }
                turn.logits.extend(row);
            }
        }
        Ok(())
    }
}

fn engine(pass_ms: u64, options: Options) -> (Engine, Arc<Mutex<Vec<Vec<usize>>>>) {
    let sizes = Arc::default();
    let network = Counting { pass: Duration::from_millis(pass_ms), sizes: Arc::clone(&sizes) };
    (Engine::start(network, options).unwrap(), sizes)
}

fn generate(engine: &Engine, prompt: &[u32], max_tokens: usize, stop: &[u32]) -> UnboundedReceiver<Event> {
    submit(engine, prompt, Work::greedy(max_tokens, stop.to_vec()))
}

fn submit(engine: &Engine, prompt: &[u32], work: Work) -> UnboundedReceiver<Event> {
    let (job, events) = Job::new(Class::Live, prompt.to_vec(), work, Instant::now());
    engine.submit(job).unwrap();
    events
}

#[derive(Debug)]
struct Answer {
    tokens: Vec<u32>,
    scores: Vec<f32>,
    end: Option<Result<Ended, Failure>>,
}

fn collect(mut events: UnboundedReceiver<Event>) -> Answer {
    let mut answer = Answer { tokens: Vec::new(), scores: Vec::new(), end: None };
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Token { id, .. } => answer.tokens.push(id),
            Event::Scores(scores) => answer.scores = scores,
            Event::Ended(ended) => answer.end = Some(Ok(ended)),
            Event::Failed(failure) => answer.end = Some(Err(failure)),
        }
    }
    answer
}

fn ended(answer: &Answer) -> Ended {
    answer.end.clone().expect("the engine lives").expect("the job ends well")
}

#[test]
fn an_engine_whose_passes_all_fail_stops_and_one_that_fails_now_and_then_does_not() {
    let (engine, _) = engine(0, Options::default());
    for round in 0..5 {
        let failed = collect(generate(&engine, &[REFUSED], 1, &[]));
        assert!(matches!(failed.end, Some(Err(Failure::Forward { .. }))), "{round}");
        ended(&collect(generate(&engine, &[1], 1, &[])));
    }
    for _ in 0..3 {
        assert!(engine.is_alive());
        assert!(matches!(collect(generate(&engine, &[REFUSED], 1, &[])).end, Some(Err(Failure::Forward { .. }))));
    }
    // The last answer goes out just before.
    while engine.is_alive() {
        std::thread::yield_now();
    }
    let (job, _events) = Job::new(Class::Live, vec![1], Work::greedy(1, Vec::new()), Instant::now());
    assert_eq!(engine.submit(job), Err(Refused::Stopped));
}

#[test]
fn answers_do_not_depend_on_company_or_on_chunks() {
    let (engine, sizes) = engine(1, Options { prefill_chunk: 3, ..Options::default() });
    let prompts: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 6, 7], &[9], &[0, 0, 4, 2]];
    let answers: Vec<_> = prompts.map(|p| generate(&engine, p, 3, &[])).map(collect).into();
    assert_eq!(answers[0].tokens, [8, 9, 10]);
    assert_eq!(answers[1].tokens, [10, 11, 12]);
    assert_eq!(answers[2].tokens, [3, 4, 5]);
    let sizes = sizes.lock().unwrap();
    assert!(sizes.iter().any(|pass| pass.len() > 1), "requests share passes: {sizes:?}");
    assert!(sizes.iter().all(|pass| pass.iter().filter(|n| **n > 1).sum::<usize>() <= 3), "chunks: {sizes:?}");
}

#[test]
fn scores_are_the_rows_asked_for_in_the_order_asked_for() {
    let (engine, sizes) = engine(0, Options { prefill_chunk: 2, ..Options::default() });
    let answer = collect(submit(&engine, &[3, 5, 7, 9, 11], Work::Score { positions: vec![3, 0, 3, 1] }));
    assert_eq!(ended(&answer).finish, Finish::Stop);
    let rows: Vec<_> = answer.scores.chunks(VOCABULARY).collect();
    assert_eq!(rows.len(), 4);
    for (row, (position, token)) in rows.iter().zip([(3, 9), (0, 3), (3, 9), (1, 5)]) {
        assert_eq!(row[0], position as f32 / 1000.0);
        assert_eq!(row[token + 1], 1.0);
    }
    assert_eq!(sizes.lock().unwrap().iter().flatten().sum::<usize>(), 4, "nothing after the last position is read");
}

#[test]
fn an_answer_ends_at_a_stop_token_or_at_its_length() {
    let (engine, _) = engine(0, Options::default());
    let stopped = collect(generate(&engine, &[1], 9, &[4]));
    assert_eq!((stopped.tokens.as_slice(), ended(&stopped).finish), (&[2, 3][..], Finish::Stop));
    let empty = collect(generate(&engine, &[3], 9, &[4]));
    assert_eq!((empty.tokens.as_slice(), ended(&empty).finish), (&[][..], Finish::Stop));
    let forced = collect(generate(&engine, &[3], 4, &[]));
    assert_eq!((forced.tokens.as_slice(), ended(&forced).finish), (&[4, 5, 6, 7][..], Finish::Length));
}

#[test]
fn alone_is_true_only_without_any_overlap() {
    let (engine, _) = engine(3, Options::default());
    for _ in 0..20 {
        assert!(ended(&collect(generate(&engine, &[1], 3, &[]))).alone, "one after the other is alone");
    }
    let first = generate(&engine, &[1], 8, &[]);
    sleep(Duration::from_millis(5));
    let second = generate(&engine, &[1], 8, &[]);
    assert!(!ended(&collect(first)).alone);
    assert!(!ended(&collect(second)).alone, "the first one ended while it ran");
    // With one slot nothing shares a pass, but the second one waits through the first one's.
    let (engine, _) = self::engine(3, Options { max_batch: 1, ..Options::default() });
    let first = generate(&engine, &[1], 4, &[]);
    sleep(Duration::from_millis(5));
    let second = generate(&engine, &[1], 4, &[]);
    assert!(ended(&collect(first)).alone, "the second one was not processed before its end");
    let second = ended(&collect(second));
    assert!(!second.alone);
    assert!(second.queued >= Duration::from_millis(3), "{:?}", second.queued);
}

#[test]
fn a_caller_that_goes_away_frees_its_slot() {
    let (engine, _) = engine(1, Options { max_batch: 1, ..Options::default() });
    let abandoned = generate(&engine, &[1], 100_000, &[]);
    sleep(Duration::from_millis(5));
    let waiting = generate(&engine, &[1], 1, &[]);
    drop(abandoned);
    assert_eq!(collect(waiting).tokens, [2]);
}

#[test]
fn broken_logits_and_refused_passes_end_only_their_own_jobs() {
    let (engine, _) = engine(0, Options::default());
    let broken = collect(generate(&engine, &[BROKEN - 2], 5, &[]));
    assert_eq!(broken.tokens, [BROKEN - 1, BROKEN]);
    assert_eq!(broken.end.unwrap().unwrap_err(), Failure::NonFinite { count: 1 });
    let refused = collect(generate(&engine, &[REFUSED], 5, &[]));
    assert!(matches!(refused.end, Some(Err(Failure::Forward { .. }))));
    assert_eq!(collect(generate(&engine, &[1], 1, &[])).tokens, [2]);
}

#[test]
fn a_panic_ends_every_job_and_is_seen() {
    let (engine, _) = engine(1, Options { max_batch: 2, ..Options::default() });
    let running = generate(&engine, &[1], 100_000, &[]);
    let fatal = generate(&engine, &[FATAL], 5, &[]);
    let waiting = generate(&engine, &[2], 5, &[]);
    for events in [running, fatal, waiting] {
        assert!(collect(events).end.is_none(), "the channel closes without an end");
    }
    assert!(!engine.is_alive());
    let (job, _events) = Job::new(Class::Live, vec![1], Work::Score { positions: vec![0] }, Instant::now());
    assert_eq!(engine.submit(job), Err(Refused::Stopped));
}

#[test]
fn busy_time_is_work_and_nothing_else() {
    let (engine, _) = engine(5, Options::default());
    sleep(Duration::from_millis(30));
    assert_eq!(engine.busy_seconds(), 0.0);
    let asked = Instant::now();
    collect(generate(&engine, &[1], 4, &[]));
    settled(&engine);
    let waited = asked.elapsed().as_secs_f64();
    sleep(Duration::from_millis(20));
    let busy = engine.busy_seconds();
    assert!((0.020..=waited).contains(&busy), "4 passes of 5 ms, within {waited}: {busy}");
    assert_eq!((engine.running(), engine.waiting(), engine.pass_age()), (0, 0, Duration::ZERO));
    let (engine, _) = self::engine(100, Options::default());
    let events = generate(&engine, &[1], 1, &[]);
    let passes = engine.passes();
    while engine.pass_age() < Duration::from_millis(10) {
        assert_eq!(engine.passes(), passes, "a pass of 100 ms ended and its age was never seen");
        std::thread::yield_now();
    }
    collect(events);
}

#[test]
fn a_lone_request_never_waits_for_company_but_a_burst_does() {
    let wait = Duration::from_secs(20);
    let (lone, _) = engine(0, Options { batch_wait: wait, ..Options::default() });
    let started = Instant::now();
    collect(generate(&lone, &[1], 1, &[]));
    assert!(started.elapsed() < wait / 2);
    let (engine, sizes) = engine(0, Options { batch_wait: Duration::from_millis(60), ..Options::default() });
    // A dense stream: gaps well below a quarter of the window.
    let all: Vec<_> = (0..40)
        .map(|_| {
            sleep(Duration::from_millis(1));
            generate(&engine, &[1], 1, &[])
        })
        .collect();
    for events in all {
        assert_eq!(collect(events).tokens, [2]);
    }
    let largest = sizes.lock().unwrap().iter().map(Vec::len).max().unwrap();
    assert!(largest > 3, "requests of one window share a pass: {:?}", sizes.lock().unwrap());
}

#[test]
fn what_was_read_for_one_request_is_not_read_for_the_next() {
    let (engine, sizes) = engine(0, Options::default());
    let first: Vec<u32> = (0..24).map(|i| i % 11).collect();
    let answer = collect(generate(&engine, &first, 4, &[]));
    assert_eq!(ended(&answer).reused, 0);
    let longer: Vec<u32> = first.iter().chain(&answer.tokens).copied().chain([5, 6]).collect();
    let alone = collect(generate(&engine, &longer, 3, &[]));
    // All but the last token of the first answer were fed.
    assert_eq!(ended(&alone).reused, first.len() + 3);
    assert_eq!(alone.tokens, [7, 8, 9]);
    let passes = sizes.lock().unwrap().clone();
    assert_eq!(passes[passes.len() - 3..], [[3], [1], [1]], "three tokens of the prompt were left to read");
    assert_eq!(engine.reused_tokens(), first.len() as u64 + 3);
    let score = submit(&engine, &longer, Work::Score { positions: vec![1] });
    assert_eq!(collect(score).scores[0], 0.001, "scores read everything");
}

#[test]
fn comparisons_and_broken_answers_share_nothing() {
    let (engine, sizes) = engine(0, Options::default());
    let prompt: Vec<u32> = (0..24).map(|i| i % 11).collect();
    let whole = [prompt.len(), 1];
    let internal = || {
        let work = Work::greedy(2, Vec::new());
        let (job, events) = Job::new(Class::Internal, prompt.clone(), work, Instant::now());
        engine.submit(job).unwrap();
        collect(events)
    };
    internal();
    collect(generate(&engine, &prompt, 2, &[]));
    internal();
    let read: Vec<usize> = sizes.lock().unwrap().iter().map(|pass| pass[0]).collect();
    assert_eq!(read, [whole, whole, whole].concat());
    let broken: Vec<u32> = (0..20).map(|_| 3).chain([BROKEN]).collect();
    for _ in 0..2 {
        let answer = collect(generate(&engine, &broken, 2, &[]));
        assert_eq!(answer.end.unwrap().unwrap_err(), Failure::NonFinite { count: 1 });
    }
    let read: Vec<usize> = sizes.lock().unwrap().iter().map(|pass| pass[0]).collect();
    assert_eq!(read[6..], [broken.len(), broken.len()]);
    settled(&engine);
    assert_eq!((engine.non_finite(), engine.reused_tokens(), engine.bytes_per_pass()), (2, 0, 100));
}

/// The counts of what was answered are there.
fn settled(engine: &Engine) {
    while !engine.is_idle() {
        std::thread::yield_now();
    }
}

/// Asks in idle time for an answer of `tokens` tokens.
fn in_background(engine: &Engine, prompt: &[u32], tokens: usize) -> Result<UnboundedReceiver<Event>, Refused> {
    let work = Work::greedy(tokens, Vec::new());
    let (job, events) = Job::new(Class::Background, prompt.to_vec(), work, Instant::now());
    engine.submit(job).map(|()| events)
}

#[test]
fn background_work_reads_little_at_a_time_and_makes_room_at_once() {
    let (engine, sizes) = engine(2, Options { max_batch: 1, ..Options::default() });
    let prompt: Vec<u32> = (0..90).map(|i| i % 11).collect();
    let background = in_background(&engine, &prompt, 50).unwrap();
    while sizes.lock().unwrap().len() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(in_background(&engine, &[1], 1).err(), None, "it is taken, and then given up: one at a time");
    let live = collect(generate(&engine, &[1, 2, 3], 2, &[]));
    assert_eq!(live.tokens, [4, 5], "the only slot is the user's");
    assert!(!ended(&live).alone, "a pass of something else ended after its arrival");
    settled(&engine);
    let given_up = collect(background);
    assert_eq!(given_up.end.unwrap().unwrap_err(), Failure::Yielded);
    let sizes = sizes.lock().unwrap().clone();
    assert!(sizes.iter().all(|pass| pass.len() == 1), "it never shares a pass: {sizes:?}");
    let before = sizes.iter().position(|pass| *pass == [3]).expect("the user's prompt");
    assert!(sizes[..before].iter().all(|pass| *pass == [8]), "{sizes:?}");
    assert_eq!(sizes[before..], [vec![3], vec![1]], "nothing of it runs on");
    assert_eq!(engine.passes(), 2, "passes that nobody waits for are not counted");
    assert!(engine.background_seconds() > 0.0 && engine.busy_seconds() < 0.1);
}

#[test]
fn background_work_is_refused_while_there_is_other_work_and_done_where_there_is_none() {
    let (engine, _) = engine(3, Options::default());
    let running = generate(&engine, &[1], 8, &[]);
    while engine.running() == 0 {
        std::thread::yield_now();
    }
    assert!(!engine.is_idle());
    assert_eq!(in_background(&engine, &[1], 1).err(), Some(Refused::Busy));
    collect(running);
    settled(&engine);
    assert_eq!(collect(in_background(&engine, &[1], 3).unwrap()).tokens, [2, 3, 4]);
    assert!(engine.is_idle());
}

#[test]
fn a_long_prompt_stalls_nobody_who_decodes() {
    // The first answer has twelve tokens before it meets the broken one: it lasts longer than the prompt is read.
    let (engine, sizes) = engine(20, Options { prefill_chunk: 4, ..Options::default() });
    let decoding = generate(&engine, &[1], 200, &[]);
    let long: Vec<u32> = (0..24).map(|i| i % 11).collect();
    assert_eq!(collect(generate(&engine, &long, 1, &[])).tokens, [(23 % 11) + 1]);
    drop(decoding);
    let sizes = sizes.lock().unwrap();
    let shared = sizes.iter().filter(|pass| pass.len() == 2).count();
    assert!((6..=7).contains(&shared), "the prompt is read in chunks of 4: {sizes:?}");
    assert!(sizes.iter().all(|pass| pass[0] == 1), "each beside a token of the other answer: {sizes:?}");
}

#[test]
fn a_batch_is_as_large_as_it_may_be_and_no_larger() {
    let (engine, sizes) = engine(5, Options { max_batch: 32, prefill_chunk: 64, ..Options::default() });
    let answers: Vec<_> = (0..40).map(|_| generate(&engine, &[1], 12, &[])).collect();
    for answer in answers {
        assert_eq!(collect(answer).tokens.len(), 12);
    }
    let largest = sizes.lock().unwrap().iter().map(Vec::len).max().unwrap();
    assert_eq!(largest, 32);
}

#[test]
fn a_prompt_that_several_ask_for_at_once_is_read_once() {
    let (engine, sizes) = engine(3, Options { prefill_chunk: 24, ..Options::default() });
    let prompt: Vec<u32> = (0..44).map(|i| i % 11).collect();
    let jobs = (0..8).map(|_| Job::new(Class::Live, prompt.clone(), Work::greedy(3, Vec::new()), Instant::now()));
    let (jobs, events): (Vec<_>, Vec<_>) = jobs.unzip();
    engine.submit_all(jobs).unwrap();
    let answers: Vec<Answer> = events.into_iter().map(collect).collect();
    assert!(answers.iter().all(|answer| answer.tokens == [11, 12, 13]));
    let reused: Vec<usize> = answers.iter().map(|answer| ended(answer).reused).collect();
    assert_eq!(reused, [0, 43, 43, 43, 43, 43, 43, 43]);
    // All of it by one, and one token by each of the others, whose logits are their own.
    let sizes = sizes.lock().unwrap().clone();
    assert_eq!(sizes[..2], [[24], [20]], "the others wait");
    assert_eq!(sizes[2], [1; 8], "and go on together");
    settled(&engine);
    assert_eq!(engine.reused_tokens(), 7 * 43);
}

#[test]
fn who_waits_for_a_reader_that_goes_away_reads_itself() {
    for prefix_tokens in [Some(SHARED), None] {
        let options = Options { prefill_chunk: 16, prefix_tokens, ..Options::default() };
        let (engine, sizes) = engine(20, options);
        let prompt: Vec<u32> = (0..400).map(|i| i % 11).collect();
        let reader = generate(&engine, &prompt, 2, &[]);
        while sizes.lock().unwrap().len() < 3 {
            std::thread::yield_now();
        }
        let waiting = [generate(&engine, &prompt, 2, &[]), generate(&engine, &prompt, 2, &[])];
        while engine.running() < 3 {
            std::thread::yield_now();
        }
        drop(reader);
        for answer in waiting.map(collect) {
            assert_eq!(answer.tokens, [400 % 11, 400 % 11 + 1].map(|token| token as u32));
            // Of what was read before it went away, as much as may be kept; the second one waits for the first one again.
            assert!(ended(&answer).reused >= SHARED, "{:?}", ended(&answer));
        }
    }
}

/// Tokens that are kept in one of the tests.
const SHARED: usize = 20;

#[test]
fn nothing_is_shared_where_that_is_off_nor_with_comparisons() {
    let (engine, sizes) = engine(2, Options { prefix_tokens: Some(0), ..Options::default() });
    let prompt: Vec<u32> = (0..44).map(|i| i % 11).collect();
    let answers = [(); 3].map(|()| generate(&engine, &prompt, 1, &[])).map(collect);
    assert!(answers.iter().all(|answer| ended(answer).reused == 0));
    assert_eq!(sizes.lock().unwrap().iter().flatten().sum::<usize>(), 3 * 44);
    let (engine, _) = self::engine(2, Options::default());
    let live = generate(&engine, &prompt, 30, &[]);
    let (job, events) = Job::new(Class::Internal, prompt.clone(), Work::greedy(1, Vec::new()), Instant::now());
    engine.submit(job).unwrap();
    assert_eq!(ended(&collect(events)).reused, 0);
    drop(live);
}

#[test]
fn a_broken_reader_leaves_nothing_to_those_who_wait_for_it() {
    let (engine, _) = engine(3, Options { prefill_chunk: 32, ..Options::default() });
    let good: Vec<u32> = (0..60).map(|i| i % 11).collect();
    let mut bad = good.clone();
    bad.push(REFUSED);
    let broken = generate(&engine, &bad, 2, &[]);
    let waiting = generate(&engine, &good, 2, &[]);
    assert!(collect(broken).end.unwrap().is_err());
    assert_eq!(collect(waiting).tokens, [60 % 11, 60 % 11 + 1].map(|token| token as u32));
}

#[test]
fn without_a_budget_a_prompt_beside_an_answer_is_read_in_the_smallest_chunks() {
    let (engine, sizes) = engine(30, Options { prefill_budget: Duration::ZERO, ..Options::default() });
    let long: Vec<u32> = (0..100).map(|i| i % 11).collect();
    collect(generate(&engine, &long, 1, &[]));
    let decoding = generate(&engine, &[0; 40], 200, &[]);
    while sizes.lock().unwrap().len() < 3 {
        std::thread::yield_now();
    }
    let other: Vec<u32> = (0..100).map(|i| 10 - i % 11).collect();
    collect(generate(&engine, &other, 1, &[]));
    drop(decoding);
    let sizes = sizes.lock().unwrap();
    assert_eq!(sizes[0], [100], "nobody waits beside the first one");
    let beside: Vec<usize> = sizes.iter().filter(|pass| pass.len() == 2).map(|pass| pass[1]).collect();
    assert!(beside.iter().all(|count| *count <= 16), "{sizes:?}");
    assert!(!beside.is_empty(), "{sizes:?}");
}
