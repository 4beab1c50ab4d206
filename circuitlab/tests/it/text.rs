//! Text: files, tokenizers, contexts.

use std::path::PathBuf;

use circuitlab::text::{Deal, PackOptions, SourceFile, Tokenizer, pack, resolve};
use circuitlab::{Result, Silent};

use crate::fake::{FakeModel, World, tokenizer, write};

fn files(world: &World, paths: &[&str]) -> Result<Vec<SourceFile>> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| world.path(path)).collect();
    resolve(&world.registry, &world.config.sources, &paths, &Silent)
}

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn folders_stand_for_their_files_of_known_kinds() {
    let world = World::new();
    let names = |paths: &[&str]| {
        let found = files(&world, paths).expect("text");
        found.iter().map(|file| file.path().file_name().expect("a name").display().to_string()).collect::<Vec<_>>()
    };
    std::fs::create_dir(world.path("many")).expect("a folder");
    for name in ["b.txt", "a.TXT", "notes.pdf"] {
        write(&world.path("many").join(name), "w2");
    }
    assert_eq!(names(&["text.txt", "many"]), ["text.txt", "a.TXT", "b.txt"]);
    assert!(
        message(files(&world, &["many/notes.pdf"]))
            .contains("no text source reads files of the kind `.pdf`; known: `.jsonl`, `.ndjson`, `.parquet`, `.txt`; text may be packed")
    );
    std::fs::create_dir_all(world.path("many/below/.hidden")).expect("folders");
    for name in ["c.txt.gz", ".d.txt", ".hidden/e.txt"] {
        write(&world.path("many/below").join(name), "w2");
    }
    assert_eq!(names(&["many"]), ["a.TXT", "b.txt", "c.txt.gz"]);
    assert_eq!(names(&["many/**/[bc].txt*"]), ["b.txt", "c.txt.gz"]);
    assert!(message(files(&world, &["many/*.md"])).contains("as a pattern it fits none"));
    assert!(message(files(&world, &["many/[a"])).contains("it is no pattern"));
    assert!(message(files(&world, &["gone.txt"])).starts_with("cannot read `"));
    assert!(message(files(&world, &[])).contains("no text was given"));
    std::fs::create_dir(world.path("empty")).expect("a folder");
    assert!(message(files(&world, &["empty"])).contains("it holds no text; known kinds: `.jsonl`"));
}

#[test]
fn ranges_split_a_text_without_overlap() {
    let world = World::new();
    let model = FakeModel::new();
    let tokenizer = Tokenizer::load(world.folder.path(), &model.info).expect("a tokenizer");
    let packed = |range: &str| {
        let options = PackOptions { range: range.parse().expect("a range"), ..PackOptions::new(9) };
        let packed = pack(&files(&world, &["text.txt"]).expect("text"), &tokenizer, &model.info, &options, &Silent).expect("packs");
        packed.iter().flat_map(|context| context.tokens.iter().map(move |token| (context.origin(0).document, *token))).collect::<Vec<_>>()
    };
    let whole = packed("0..1");
    let (first, second) = (packed("0..0.8"), packed("0.8..1"));
    assert!(first.len() > second.len() && !second.is_empty());
    // A cut inside a word makes two unknown ones of it; everything else is there once.
    let near = first.len() + second.len() - whole.len();
    assert!(near <= 1, "{near}");
    assert_eq!(first[..first.len() - 1], whole[..first.len() - 1]);
    assert_eq!(second[1..], whole[whole.len() - second.len() + 1..]);
}

#[test]
fn a_document_of_many_pieces_stays_one() {
    let mut world = World::new();
    world.config.sources.clear();
    let words: Vec<u32> = (0..2_500_000).map(|place| 2 + place * 7 % 28).collect();
    let lines: Vec<String> = words.chunks(10).map(|line| line.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")).collect();
    write(&world.path("long.txt"), lines.join("\n"));
    let model = FakeModel::new();
    let tokenizer = Tokenizer::load(world.folder.path(), &model.info).expect("a tokenizer");
    let files = files(&world, &["long.txt"]).expect("text");
    let mut seen = vec![0_u8; words.len()];
    for part in 0..2 {
        let options = PackOptions { deal: Deal { seed: 1, part, parts: 2 }, ..PackOptions::new(64) };
        let packed = pack(&files, &tokenizer, &model.info, &options, &Silent).expect("packs");
        assert!(packed.len() > 19_000, "each part has its half, not {}", packed.len());
        for context in packed.iter() {
            let origin = context.origin(0);
            let place = origin.position as usize;
            assert_eq!((origin.document, context.tokens), (0, &words[place..place + context.tokens.len()]));
            seen[place..place + context.tokens.len()].iter_mut().for_each(|seen| *seen += 1);
        }
    }
    assert!(seen.iter().all(|seen| *seen == 1), "every token is in one context of one part");
}

#[test]
fn tokenizers_of_other_models_and_broken_ones_are_refused() {
    let world = World::new();
    let model = FakeModel::new();
    write(&world.path("large.json"), tokenizer(31));
    let error = message(Tokenizer::load(&world.path("large.json"), &model.info));
    assert!(error.contains("it does not belong to the model `fake-model`: it has the token 30, and the model knows 30 tokens"), "{error}");
    write(&world.path("broken.json"), "{}");
    let error = message(Tokenizer::load(&world.path("broken.json"), &model.info));
    assert!(error.starts_with("tokenizer `") && !error.contains('\n'), "{error}");
    assert!(message(Tokenizer::load(&world.path("gone.json"), &model.info)).starts_with("cannot read `"));
}

#[test]
fn tokenizers_encode_without_special_tokens_or_cuts_and_know_special_ones() {
    let world = World::new();
    let tokenizer = Tokenizer::load(world.folder.path(), &FakeModel::new().info).expect("a tokenizer");
    assert_eq!(tokenizer.encode("w5 w6 w7 w8 w9 <s> what").expect("encodes"), [5, 6, 7, 8, 9, 0, 1]);
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(1));
    assert_eq!(tokenizer.decode(&[5, 0]).expect("decodes"), "w5 <s>");
    assert_eq!(tokenizer.sha256().map(str::len), Some(64));
}

#[test]
fn text_without_a_token_is_refused() {
    let world = World::new();
    let model = FakeModel::new();
    let tokenizer = Tokenizer::load(world.folder.path(), &model.info).expect("a tokenizer");
    write(&world.path("empty.txt"), "\n\n \n");
    let options = PackOptions::new(9);
    let error = message(pack(&files(&world, &["empty.txt"]).expect("text"), &tokenizer, &model.info, &options, &Silent));
    assert!(error.starts_with("there is no context of text in `"), "{error}");
}
