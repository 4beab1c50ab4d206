-- Numbers of features are layer * d_features + feature. JSON columns are for people and other tools; the program reads the blocks beside.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE features (
    id INTEGER PRIMARY KEY,
    layer INTEGER NOT NULL,
    feature INTEGER NOT NULL,
    firings INTEGER NOT NULL,
    frequency REAL NOT NULL,
    mean REAL NOT NULL,
    max REAL NOT NULL,
    min REAL NOT NULL,
    quantiles TEXT NOT NULL,     -- JSON: upper bounds of the lower nine tenths of all activations
    top_logits TEXT NOT NULL,    -- JSON: [token, effect] of all targets together
    bottom_logits TEXT NOT NULL,
    decoder_norms TEXT NOT NULL, -- JSON: of each target layer from the first on
    neighbours TEXT NOT NULL     -- JSON: [number, cosine]
) STRICT;
CREATE TABLE labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    feature_id INTEGER NOT NULL REFERENCES features (id),
    text TEXT NOT NULL,          -- empty where the request failed
    failure TEXT,                -- why there is no text
    explainer TEXT NOT NULL,
    model TEXT,
    made_at INTEGER NOT NULL     -- seconds since 1970
) STRICT;
CREATE INDEX labels_by_feature ON labels (feature_id, id);
CREATE TABLE scores (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    feature_id INTEGER REFERENCES features (id), -- nothing for figures of the whole dictionary
    label_id INTEGER REFERENCES labels (id),
    kind TEXT NOT NULL,
    judge TEXT NOT NULL,
    value REAL,                  -- nothing where the test failed
    low REAL,
    high REAL,
    detail TEXT NOT NULL,        -- JSON
    made_at INTEGER NOT NULL
) STRICT;
CREATE INDEX scores_by_feature ON scores (feature_id, kind, id);
CREATE TABLE replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, made_at INTEGER NOT NULL) STRICT;
CREATE VIRTUAL TABLE labels_text USING fts5 (text, content = 'labels', content_rowid = 'id', tokenize = 'porter unicode61');
CREATE TRIGGER labels_added AFTER INSERT ON labels BEGIN
    INSERT INTO labels_text (rowid, text) VALUES (new.id, new.text);
END;
