// Colours of the tracing language in JupyterLab and Notebook 7.
//
// JupyterLab loads an extension as a "container": an object with init(scope), which gets everything that the page
// shares (CodeMirror, JupyterLab's own packages), and get(name), which gives a module. Bundlers write such objects; this
// one is small enough to be written by hand, so that nothing has to be built, and what is read here is what runs.
"use strict";
(() => {
  // The language's own tables, as tests/notebook/test_highlight.py compares them.
  const WORDS = {
    keywords: "break comptime config const continue defer else enum fn for if import let macro offsetof return sizeof struct typeinfo typeof union unroll while".split(' '),
    types: "bool buffer char int int16 int16_t int32 int32_t int64 int64_t int8 int8_t long short signed size_t string uint16 uint16_t uint32 uint32_t uint64 uint64_t uint8 uint8_t unsigned void".split(' '),
    probes: "U asyncwatchpoint aw f fentry fexit fr h hardware i interval it iter k kfunc kprobe kr kretfunc kretprobe lsm p profile rawtracepoint rt s self software t tc tracepoint u uprobe ur uretprobe usdt w watchpoint xdp".split(' '),
    functions: "assert assert_str avg bswap buf capture cat cgroup_path cgroupid clear comm container_of count debugf default_str_length delete dw_ustack errorf exit fail find has_key hist is_array is_err is_integer is_literal is_ptr is_scalar is_str is_unsigned_integer join kaddr kfunc_allowed kfunc_exist kptr kstack ksym leader_comm leader_tid len lhist macaddr max memcmp min nsecs ntop override path pcomm percpu_kaddr pid ppid print printf pton reg signal signal_name signal_thread skboutput socket_cookie static_assert stats str str_concat strcap strcontains strerror strftime strlen strncmp strstr sum syscall_name system tid time tseries uaddr unwatch uptr ustack usym warnf write_user zero".split(' '),
    builtins: "arg0 arg1 arg10 arg11 arg2 arg3 arg4 arg5 arg6 arg7 arg8 arg9 args cgroup comm config cpid cpu ctx curtask elapsed func gid has_cpid jiffies ncpus numaid pid probe probetype rand retval tid uid usermode username".split(' '),
  };

  const KINDS = [
    ["keyword", WORDS.keywords],
    ["typeName", WORDS.types],
    ["variableName.standard", WORDS.functions],
    ["atom", WORDS.builtins],
  ];
  const KIND = new Map();
  for (const [kind, words] of KINDS) for (const word of words || []) if (!KIND.has(word)) KIND.set(word, kind);
  const PROBES = new Set(WORDS.probes || []);

  // --- pieces of a line ------------------------------------------------------------------------------------------

  const START = /^\s*(?:%%bpfseal\b|%%bpfseal$)/;

  function token(stream, state) {
    if (stream.sol() && state.first) {
      state.first = false;
      if (stream.match(/^%%bpfseal\b.*/) || stream.match(/^#!.*/)) return "meta";
    }
    if (state.comment) {
      if (stream.match(/^.*?\*\//)) state.comment = false;
      else stream.skipToEnd();
      return "comment";
    }
    if (state.string) return string(stream, state);
    if (stream.eatSpace()) return null;
    if (stream.match(/^\/\/.*/)) return "comment";
    if (stream.match("/*")) {
      state.comment = true;
      return "comment";
    }
    if (stream.sol() && stream.match(/^#.*/)) return "meta";
    if (state.point) return point(stream, state);
    if (stream.match('"')) {
      state.string = true;
      return "string";
    }
    if (stream.match(/^\$\{[^}]*\}/)) return "string.special";
    if (stream.match(/^@\w*/)) return "variableName.definition";
    if (stream.match(/^\$(?:#|\w+)/)) return "variableName.special";
    if (stream.match(/^0[xX][0-9a-fA-F_]+|^\d[\d_]*(?:e\d+)?(?:ns|us|ms|[smhd]|[uUlL]+)?/)) return "number";
    if (stream.match(/^(?:\.|->)\s*[A-Za-z_]\w*/)) return "propertyName";
    const word = stream.match(/^[A-Za-z_]\w*/);
    if (word) return name(word[0], stream, state);
    const one = stream.next();
    if (one === "{") state.depth++;
    else if (one === "}" && state.depth) state.depth--;
    return "+-*/%&|^~!<>=?".includes(one) ? "operator" : "punctuation";
  }

  function string(stream, state) {
    if (stream.match(/^\\(?:[0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)/)) return "escape";
    if (stream.match(/^%[-+ #0]*\d*(?:\.\d+)?(?:hh|h|ll|l|j|z|t)?(?:rh|rx|[a-zA-Z])|^%%/)) return "string.special";
    if (stream.match('"') || (stream.match(/^[^"\\%]+/) && stream.eol())) state.string = stream.current().slice(-1) !== '"' && !stream.eol();
    else if (stream.current() === "") stream.next();
    return "string";
  }

  // What stands behind the type of a probe is a name of the traced system, not of the language.
  function point(stream, state) {
    if (stream.match(/^[^\s{},"]+?(?=\s|[{,"]|$|\/\s*[^\s/{]*\s*(?:==|!=|<|>|\/))/) || stream.match(/^[^\s{},"]+/)) {
      state.point = false;
      return "labelName";
    }
    state.point = false;
    stream.next();
    return "punctuation";
  }

  function name(word, stream, state) {
    if (!state.depth) {
      if (/^(?:BEGIN|END|begin|end)$/.test(word)) return "keyword";
      if (PROBES.has(word) && stream.match(/^:/, false)) {
        stream.next();
        state.point = true;
        return "keyword";
      }
    }
    return KIND.get(word) || (stream.match(/^\s*\(/, false) ? "variableName.function" : "variableName");
  }

  const parser = {
    name: "bpfseal",
    startState: () => ({ first: true, comment: false, string: false, point: false, depth: 0 }),
    copyState: state => ({ ...state }),
    token,
    languageData: { commentTokens: { line: "//", block: { open: "/*", close: "*/" } }, closeBrackets: { brackets: ["(", "[", "{", '"'] } },
  };

  // --- cells -----------------------------------------------------------------------------------------------------

  const MIME = "text/x-bpfseal";

  // A cell is of the language while its first line says so; the notebook gives all its cells the kernel's language
  // when it hears of the kernel, so that has to be looked at as well. An editor takes a language when it has been
  // loaded: the one that was to be taken before has to have come, or it would come last and stay.
  function follow(cell, usual, loaded) {
    if (cell.model.type !== "code") return;
    const model = cell.model;
    const isMine = () => START.test(model.sharedModel.getSource().slice(0, 200));
    const look = () => {
      if (isMine() && model.mimeType !== MIME) {
        loaded(model.mimeType).then(() => {
          if (isMine() && model.mimeType !== MIME) model.mimeType = MIME;
        });
      } else if (!isMine() && model.mimeType === MIME) model.mimeType = usual();
    };
    model.contentChanged.connect(look);
    model.mimeTypeChanged.connect(look);
    look();
  }

  function watch(panel, loaded) {
    const notebook = panel.content;
    const seen = new WeakSet();
    const usual = () => notebook.codeMimetype || "text/x-ipython";
    const all = () => {
      for (const cell of notebook.widgets) {
        if (seen.has(cell.model)) continue;
        seen.add(cell.model);
        follow(cell, usual, loaded);
      }
    };
    notebook.modelContentChanged.connect(all);
    panel.context.ready.then(all);
  }

  async function extension(shared) {
    const [language, codemirror, notebook] = await Promise.all(
      ["@codemirror/language", "@jupyterlab/codemirror", "@jupyterlab/notebook"].map(shared)
    );
    const activate = (app, languages, tracker) => {
      languages.addLanguage({
        name: "bpfseal",
        mime: [MIME, "text/x-bpftrace"],
        extensions: ["bt"],
        support: new language.LanguageSupport(language.StreamLanguage.define(parser)),
      });
      const loaded = mime => Promise.resolve(languages.getLanguage(mime)).catch(() => null);
      tracker.forEach(panel => watch(panel, loaded));
      tracker.widgetAdded.connect((_, panel) => watch(panel, loaded));
    };
    return {
      // Without the mark the page takes the module itself for a plugin, finds no id, and stays blank.
      __esModule: true,
      default: {
        id: "bpfseal:highlight",
        description: "Colours of the tracing language in %%bpfseal cells and .bt files.",
        autoStart: true,
        requires: [codemirror.IEditorLanguageRegistry, notebook.INotebookTracker],
        activate,
      },
    };
  }

  // --- the container ---------------------------------------------------------------------------------------------

  let scope = null;

  async function shared(name) {
    const versions = Object.values((scope && scope[name]) || {});
    if (!versions.length) throw new Error(`bpfseal: this page does not share ${name}`);
    return (await (versions.find(one => one.loaded) || versions[0]).get())();
  }

  const container = {
    init: given => {
      scope = given;
    },
    get: async name => {
      if (name !== "./extension") throw new Error(`bpfseal has no module ${name}`);
      const made = await extension(shared);
      return () => made;
    },
  };
  (globalThis._JUPYTERLAB = globalThis._JUPYTERLAB || {}).bpfseal = container;
})();
