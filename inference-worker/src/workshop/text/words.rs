//! The vocabulary of the templates. Order matters where words are drawn by rank.

macro_rules! words {
    ($($name:ident: $($word:literal)*;)*) => {
        $(pub(super) const $name: &[&str] = &[$($word),*];)*
    };
}

words! {
    NAMES: "Anna" "Tom" "Mila" "Ben" "Lucy" "Max" "Nora" "Leo" "Emma" "Sam" "Ruby" "Jack" "Ella" "Finn" "Rose" "Owen" "Lily"
        "Adam" "Clara" "Hugo" "Ivy" "Noah" "Zoe" "Paul" "Maya" "Oscar" "Jane" "Felix" "Vera" "Simon";
    ANIMALS: "cat" "dog" "fox" "rabbit" "bear" "mouse" "owl" "horse" "frog" "duck" "wolf" "goat" "hen" "deer" "pig" "crow"
        "sheep" "turtle" "squirrel" "lion";
    PLACES: "forest" "garden" "village" "river" "house" "market" "school" "farm" "beach" "mountain" "castle" "library"
        "kitchen" "field" "harbor" "bridge" "park" "barn" "cave" "tower";
    OBJECTS: "ball" "key" "book" "lamp" "box" "hat" "stone" "map" "coin" "cup" "bell" "rope" "basket" "drum" "kite" "shell"
        "letter" "ring" "clock" "mirror" "blanket" "spoon" "flute" "ladder";
    COLORS: "red" "blue" "green" "yellow" "black" "white" "brown" "golden" "silver" "purple";
    SIZES: "small" "big" "little" "tiny" "old" "young" "large" "tall" "quiet" "brave";
    MOODS: "happy" "sad" "tired" "angry" "hungry" "afraid" "proud" "curious" "calm" "lonely";
    FOODS: "bread" "cheese" "soup" "apples" "cake" "honey" "milk" "rice" "fish" "berries" "nuts" "carrots";
    JOBS: "baker" "teacher" "farmer" "doctor" "sailor" "painter" "miller" "hunter" "singer" "tailor";
    LANDS: "Arland" "Borvia" "Cestan" "Dorland" "Estavia" "Farona" "Gelland" "Hovaria" "Istan" "Jorvia" "Kelland" "Lumeria"
        "Morland" "Nestia" "Orvania" "Pelland";
    TOWNS: "Torvik" "Belmar" "Sandor" "Kelmin" "Ardale" "Rovan" "Milton" "Westby" "Orlin" "Castor" "Denmar" "Fulton"
        "Harlow" "Istria" "Lorin" "Norwood";
    DAYS: "Monday" "Tuesday" "Wednesday" "Thursday" "Friday" "Saturday" "Sunday";
    NUMBERS: "zero" "one" "two" "three" "four" "five" "six" "seven" "eight" "nine" "ten" "eleven" "twelve";
}

macro_rules! pairs {
    ($($name:ident: $($left:literal => $right:literal)*;)*) => {
        $(pub(super) const $name: &[(&str, &str)] = &[$(($left, $right)),*];)*
    };
}

pairs! {
    SOUNDS: "dog" => "barks" "cat" => "meows" "duck" => "quacks" "cow" => "moos" "lion" => "roars" "owl" => "hoots"
        "frog" => "croaks" "wolf" => "howls" "bee" => "buzzes" "bird" => "sings" "mouse" => "squeaks" "pig" => "grunts";
    COLORS_OF: "lemon" => "yellow" "cherry" => "red" "grass" => "green" "snow" => "white" "coal" => "black" "sky" => "blue"
        "plum" => "purple" "carrot" => "orange" "banana" => "yellow" "leaf" => "green" "milk" => "white"
        "chocolate" => "brown";
    OPPOSITES: "hot" => "cold" "big" => "small" "day" => "night" "up" => "down" "fast" => "slow" "open" => "closed"
        "wet" => "dry" "full" => "empty" "young" => "old" "happy" => "sad" "light" => "dark" "early" => "late";
    HOMES: "bee" => "hive" "bird" => "nest" "bear" => "cave" "fish" => "sea" "horse" => "stable" "spider" => "web"
        "fox" => "den" "king" => "castle" "farmer" => "farm" "rabbit" => "burrow";
    TOOLS: "baker" => "an oven" "painter" => "a brush" "farmer" => "a plow" "sailor" => "a boat" "teacher" => "a book"
        "tailor" => "a needle" "hunter" => "a bow" "singer" => "a song" "miller" => "a mill" "doctor" => "a bandage";
}
