//! The training text: little stories, facts, sums, who-has-what, dialogues, made from templates and a seed.
//!
//! It is meant to be learned by a small model within minutes and still to leave room for doubt in every sentence: names
//! and things follow skewed frequencies, answers must be looked up earlier in the text, and no two documents need be
//! equal.

mod words;

use crate::engine::random::Random;
use words::{
    ANIMALS, COLORS, COLORS_OF, DAYS, FOODS, HOMES, JOBS, LANDS, MOODS, NAMES, NUMBERS, OBJECTS, OPPOSITES, PLACES,
    SIZES, SOUNDS, TOOLS, TOWNS,
};

/// Documents until they hold `bytes` bytes together; from the seed alone.
pub fn documents(seed: u64, bytes: usize) -> Vec<String> {
    let mut writer = Writer::new(seed);
    let mut all = Vec::new();
    let mut written = 0;
    while written < bytes {
        let document = writer.document();
        written += document.len();
        all.push(document);
    }
    all
}

/// Writes one document after the other, without end.
pub struct Writer(Random);

/// A column of pairs, for example animals and their sounds.
type Pairs = [(&'static str, &'static str)];

impl Writer {
    /// A writer whose documents depend on the seed alone.
    pub fn new(seed: u64) -> Self {
        Self(Random::from_seed(seed))
    }

    /// The next document: one to a dozen sentences, no line breaks.
    pub fn document(&mut self) -> String {
        match self.0.below(20) {
            0..=7 => self.story(),
            8..=11 => self.several(3, 4, Self::fact),
            12..=14 => self.several(3, 4, Self::sum),
            15..=17 => self.who_has_what(),
            _ => self.dialogue(),
        }
    }

    fn pick(&mut self, words: &[&'static str]) -> &'static str {
        words[self.0.below(words.len())]
    }

    fn pair(&mut self, pairs: &Pairs) -> (&'static str, &'static str) {
        pairs[self.0.below(pairs.len())]
    }

    fn coin(&mut self) -> bool {
        self.0.below(2) == 0
    }

    /// Earlier words are likelier, roughly as in real text.
    fn skewed(&mut self, words: &[&'static str]) -> &'static str {
        let rank = (words.len() as f64 + 1.0).powf(self.0.unit()) - 1.0;
        words[(rank as usize).min(words.len() - 1)]
    }

    fn other_name(&mut self, than: &str) -> &'static str {
        let mut name = self.skewed(NAMES);
        while name == than {
            name = self.pick(NAMES);
        }
        name
    }

    fn several(&mut self, least: usize, more: usize, mut sentence: impl FnMut(&mut Self) -> String) -> String {
        let n = least + self.0.below(more);
        (0..n).map(|_| sentence(self)).collect::<Vec<_>>().join(" ")
    }

    /// A story: five sentences or more about somebody who finds something.
    pub fn story(&mut self) -> String {
        let (hero, animal, size, home) =
            (self.skewed(NAMES), self.skewed(ANIMALS), self.skewed(SIZES), self.skewed(PLACES));
        let friend = self.other_name(hero);
        let (color, thing, place) = (self.skewed(COLORS), self.skewed(OBJECTS), self.pick(PLACES));
        let (job, food, day) = (self.skewed(JOBS), self.skewed(FOODS), self.pick(DAYS));
        let mut mood = self.skewed(MOODS);
        let (size, color_thing) = (article(size), article(color));
        let opening = match self.0.below(3) {
            0 => format!("Once upon a time there was {size} {animal} named {hero}. {hero} lived in the {home}."),
            1 => format!("{hero} was {size} {animal} who lived near the {home}."),
            _ => format!("In the {home} there lived {size} {animal}. The {animal} was called {hero}."),
        };
        let finding = match self.0.below(3) {
            0 => format!("One day {hero} found {color_thing} {thing} in the {place}."),
            1 => format!("On {day} {hero} went to the {place} and saw {color_thing} {thing}."),
            _ => format!(
                "Every morning {hero} walked to the {place} to look for {food}. But on {day} {hero} found {color_thing} {thing} there."
            ),
        };
        let owner = match self.0.below(4) {
            0 => format!("The {thing} belonged to {friend} the {job}."),
            1 => format!("{friend} the {job} had lost the {color} {thing}."),
            2 => format!("\"Whose {thing} is this?\" asked {hero}. \"It is mine,\" said {friend} the {job}."),
            _ => format!("{hero} showed the {color} {thing} to {friend} the {job}."),
        };
        let deed = match self.0.below(4) {
            0 => {
                let before = std::mem::replace(&mut mood, "happy");
                format!("{hero} was {before} and gave the {thing} back to {friend}.")
            }
            1 => format!("{friend} said thank you and gave {hero} some {food}. {hero} ate the {food} and felt {mood}."),
            2 => format!("{hero} and {friend} carried the {thing} from the {place} to the {home}."),
            _ => format!("{friend} was {mood}, so {hero} shared some {food} with {friend}."),
        };
        let end = match self.0.below(4) {
            0 => format!("In the evening {hero} went home to the {home} and slept."),
            1 => format!("From that day on {hero} and {friend} were good friends."),
            2 => format!("The {animal} was {mood} and the {job} was {mood} too."),
            _ => format!("Then {hero} the {animal} told everyone in the {home} about the {color} {thing}."),
        };
        [opening, finding, owner, deed, end].join(" ")
    }

    fn fact(&mut self) -> String {
        match self.0.below(7) {
            0 => {
                let land = self.0.below(LANDS.len());
                let (land, town) = (LANDS[land], TOWNS[(land * 5 + 3) % TOWNS.len()]);
                match self.0.below(3) {
                    0 => format!("The capital of {land} is {town}."),
                    1 => format!("Question: What is the capital of {land}? Answer: {town}."),
                    _ => format!("{town} is the capital of {land}."),
                }
            }
            1 => {
                let (animal, sound) = self.pair(SOUNDS);
                if self.coin() {
                    format!("{} {sound}.", capital(&article(animal)))
                } else {
                    format!("Question: Which animal {sound}? Answer: The {animal}.")
                }
            }
            2 => {
                let (thing, color) = self.pair(COLORS_OF);
                self.stated_or_asked(
                    &format!("The color of {thing} is {color}."),
                    &format!("What color is {thing}? Answer: {}.", capital(color)),
                )
            }
            3 => {
                let (a, b) = self.pair(OPPOSITES);
                let (a, b) = if self.coin() { (a, b) } else { (b, a) };
                self.stated_or_asked(
                    &format!("The opposite of {a} is {b}."),
                    &format!("What is the opposite of {a}? Answer: {}.", capital(b)),
                )
            }
            4 => {
                let (who, place) = self.pair(HOMES);
                self.stated_or_asked(
                    &format!("The {who} lives in the {place}."),
                    &format!("Where does the {who} live? Answer: In the {place}."),
                )
            }
            5 => {
                let (who, tool) = self.pair(TOOLS);
                self.stated_or_asked(
                    &format!("The {who} needs {tool}."),
                    &format!("What does the {who} need? Answer: {}.", capital(tool)),
                )
            }
            _ => {
                let day = self.0.below(DAYS.len());
                let (day, next) = (DAYS[day], DAYS[(day + 1) % DAYS.len()]);
                match self.0.below(3) {
                    0 => format!("{next} comes after {day}."),
                    1 => format!("{day} comes before {next}."),
                    _ => format!("Question: Which day comes after {day}? Answer: {next}."),
                }
            }
        }
    }

    fn stated_or_asked(&mut self, statement: &str, question: &str) -> String {
        if self.coin() { statement.to_owned() } else { format!("Question: {question}") }
    }

    fn sum(&mut self) -> String {
        let (a, b) = (self.0.below(10), self.0.below(10));
        match self.0.below(6) {
            0 => format!("{a} plus {b} is {}.", a + b),
            1 => format!("Question: What is {a} plus {b}? Answer: {}.", a + b),
            2 => format!("{} minus {} is {}.", a.max(b), a.min(b), a.abs_diff(b)),
            3 => {
                let (a, b) = (a % 6, b % 6);
                format!("{} times {} is {}.", capital(NUMBERS[a]), NUMBERS[b], a * b)
            }
            4 => {
                let (a, b) = (a % 6 + 1, b % 6 + 1);
                let (name, food) = (self.skewed(NAMES), self.skewed(FOODS));
                let (first, more, all) = (NUMBERS[a], NUMBERS[b], NUMBERS[a + b]);
                format!("{name} has {first} {food} and gets {more} more. Now {name} has {all} {food}.")
            }
            _ => format!("Count: {}.", NUMBERS[a..a + 4].join(", ")),
        }
    }

    fn who_has_what(&mut self) -> String {
        let people = 2 + self.0.below(3);
        let mut known: Vec<[&str; 3]> = Vec::new();
        while known.len() < people {
            let new = [self.pick(NAMES), self.pick(OBJECTS), self.pick(PLACES)];
            if known.iter().all(|k| (0..3).all(|i| k[i] != new[i])) {
                known.push(new);
            }
        }
        let mut sentences = Vec::new();
        for [name, thing, place] in &known {
            sentences.push(match self.0.below(3) {
                0 => format!("{name} is in the {place} with the {thing}."),
                1 => format!("{name} has the {thing} and stays in the {place}."),
                _ => format!("In the {place} {name} holds the {thing}."),
            });
        }
        for _ in 0..=self.0.below(3) {
            let [name, thing, place] = known[self.0.below(people)];
            sentences.push(match self.0.below(3) {
                0 => format!("Question: Who has the {thing}? Answer: {name}."),
                1 => format!("Question: Where is {name}? Answer: In the {place}."),
                _ => format!("Question: What does {name} have? Answer: The {thing}."),
            });
        }
        sentences.join(" ")
    }

    fn dialogue(&mut self) -> String {
        let (a, food, day, place) = (self.skewed(NAMES), self.skewed(FOODS), self.pick(DAYS), self.skewed(PLACES));
        let b = self.other_name(a);
        let thing = self.skewed(OBJECTS);
        let opening = match self.0.below(3) {
            0 => format!("\"Good morning, {b},\" said {a}. \"Good morning, {a},\" said {b}."),
            1 => format!("{a} met {b} at the {place}. \"Hello, {b},\" said {a}."),
            _ => format!("\"Where are you going, {b}?\" asked {a}. \"I am going to the {place},\" said {b}."),
        };
        let middle = match self.0.below(3) {
            0 => format!("\"Do you have any {food}?\" asked {b}. \"Yes, I have some {food},\" said {a}."),
            1 => format!("\"Can you come on {day}?\" asked {a}. \"Yes, I will come on {day},\" said {b}."),
            _ => format!("\"I have lost my {thing},\" said {b}. \"I will help you find the {thing},\" said {a}."),
        };
        let end = match self.0.below(3) {
            0 => format!("{a} was {}.", self.skewed(MOODS)),
            1 => format!("Then {a} and {b} went to the {place} together."),
            _ => format!("\"Goodbye, {a},\" said {b}."),
        };
        [opening, middle, end].join(" ")
    }
}

fn capital(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn article(word: &str) -> String {
    let an = word.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {word}", if an { "an" } else { "a" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn text_depends_on_the_seed_alone_and_hardly_repeats() {
        let text = documents(1, 100_000);
        assert_eq!(text, documents(1, 100_000));
        assert_ne!(text, documents(2, 100_000));
        let distinct: HashSet<_> = text.iter().collect();
        assert!(distinct.len() * 100 > text.len() * 99, "{} of {}", distinct.len(), text.len());
        assert!(text.iter().all(|d| !d.contains('\n') && d.len() > 20 && d.len() < 900 && !d.contains("  ")));
    }

    #[test]
    fn articles_fit_their_words() {
        assert_eq!((article("owl").as_str(), article("red").as_str()), ("an owl", "a red"));
        assert_eq!(capital("an owl"), "An owl");
    }
}
