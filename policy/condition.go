package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/env"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/overloads"

	"merlon"
)

// Bounds of a condition. The language is a part of CEL that can be analysed:
// no regular expressions, no time zones (they read files), no building of
// strings or lists, nothing that loops over a loop.
const (
	maxCondition = 4 << 10 // bytes of text
	maxDepth     = 32      // of nesting
	maxNodes     = 1000    // of the expression after macros
	maxInput     = 4 << 10 // bytes of a string that a condition reads
	maxItems     = 1 << 10 // of a list or map in a claim
	maxValues    = 4 << 10 // in one claim, at all depths
	maxCost      = 100_000 // units of CEL, for inputs as large as these bounds let them be
)

// Names that conditions know.
const (
	nounClaims = "claims"
	nounCaller = "caller"
	nounPath   = "path"
	nounQuery  = "query"
)

// condition is a compiled `when`. It is immutable and safe for concurrent use.
type condition struct {
	text    string
	program cel.Program
	params  []condParam
	query   bool     // reads the query
	claims  []string // that it reads
	all     bool     // it may read any claim
}

// condParam is a parameter that a condition reads.
type condParam struct {
	merlon.ParamSpec
	variable string // as CEL knows it, such as "query.page"
	presence string // the variable that answers has(); "" when it is not asked
	rest     bool   // spans segments of the path
}

// conditions makes the conditions of one Compile, equal ones once.
type conditions struct {
	base *cel.Env
	envs map[string]*cel.Env
	made map[string]*condition
}

// condition compiles the condition of a rule against every operation that the
// rule names. It returns a condition that is never true, and reports, when the
// text is wrong.
func (c *compiler) condition(r *merlon.Rule, ops []*operation) *condition {
	never := &condition{text: r.When}
	at := func(line, column, width int, code, message, hint string) {
		pos := r.WhenPos
		if pos.Column > 0 {
			pos.Line += line - 1
			pos.Column += column
		}
		c.add(merlon.Diagnostic{Pos: pos, Width: width, Code: code, Message: message, Hint: hint})
	}
	if len(r.When) > maxCondition {
		at(1, 0, 0, "E0313", fmt.Sprintf("the condition is longer than %d bytes", maxCondition), "say it shorter, or put the fact into a claim")
		return never
	}
	base, err := c.conditions.environment()
	if err != nil {
		at(1, 0, 0, "E0310", "conditions cannot be compiled: "+err.Error(), "")
		return never
	}
	parsed, issues := base.Parse(r.When)
	if issues.Err() != nil {
		report(issues, at)
		return never
	}
	w := &walker{info: parsed.NativeRep().SourceInfo(), ops: ops, at: at, uses: map[string]*condParam{}, claims: map[string]bool{}}
	w.walk(parsed.NativeRep().Expr())
	if w.failed {
		return never
	}
	if foreign := merlon.ForeignDomain(r.Caller) != ""; (w.all || len(w.claims) > 0) && (foreign || c.services[r.Caller] != nil) {
		what := "service"
		if foreign {
			what = "workload"
		}
		at(1, 0, 0, "E0317", fmt.Sprintf("the condition reads claims, and %s %q has none", what, r.Caller), "claims are those of a login's token; use caller.name here")
		return never
	}
	return c.conditions.make(r.When, parsed, w, at, never)
}

// make checks a parsed condition and plans its program.
func (cs *conditions) make(text string, parsed *cel.Ast, w *walker, at reportAt, never *condition) *condition {
	params := slices.SortedFunc(maps.Values(w.uses), func(a, b *condParam) int { return strings.Compare(a.variable, b.variable) })
	var signature strings.Builder
	for _, p := range params {
		fmt.Fprintf(&signature, "%q %d %v %q;", p.variable, p.Type, p.rest, p.presence)
	}
	key := signature.String() + "\x00" + text
	if made := cs.made[key]; made != nil {
		return made
	}
	extended, err := cs.extended(signature.String(), params)
	if err != nil {
		at(1, 0, 0, "E0310", "the condition cannot be compiled: "+err.Error(), "")
		return never
	}
	checked, issues := extended.Check(parsed)
	if issues.Err() != nil {
		report(issues, at)
		return never
	}
	if out := checked.OutputType(); !out.IsExactType(cel.BoolType) {
		hint := "compare it with something"
		if out.IsExactType(cel.DynType) {
			hint = "the type of a claim is not known before the call; write == true"
		}
		at(1, 0, len(text), "E0314", fmt.Sprintf("the condition is of type %v, not bool", out), hint)
		return never
	}
	cost, err := extended.EstimateCost(checked, sizes{})
	if err != nil || cost.Max > maxCost {
		at(1, 0, len(text), "E0313", "the condition may cost too much to evaluate on every call",
			"avoid a loop within a loop, or put the fact into a claim")
		return never
	}
	// No cel.CostLimit: its tracker takes time in the square of the length of a
	// list (a token with 4,000 groups took 10 ms), and so would be the attack that
	// it should prevent. The estimate holds for bounded inputs, and eval bounds them.
	program, err := extended.Program(checked)
	if err != nil {
		at(1, 0, 0, "E0310", "the condition cannot be compiled: "+err.Error(), "")
		return never
	}
	made := &condition{text: text, program: program, claims: slices.Sorted(maps.Keys(w.claims)), all: w.all}
	for _, p := range params {
		made.params = append(made.params, *p)
		made.query = made.query || p.In == merlon.InQuery
	}
	if cs.made == nil {
		cs.made = map[string]*condition{}
	}
	cs.made[key] = made
	return made
}

// reportAt reports at a line (from 1) and column (from 0) of the condition.
type reportAt func(line, column, width int, code, message, hint string)

// report passes on what CEL found wrong.
func report(issues *cel.Issues, at reportAt) {
	for _, e := range issues.Errors() {
		message := celMessage(e.Message)
		word := ""
		if parts := strings.Split(message, "'"); len(parts) > 2 {
			word = parts[1]
		}
		hint := ""
		switch {
		case word == overloads.Matches:
			hint = "patterns are not part of conditions; use ==, in, startsWith, endsWith or contains"
		case strings.HasPrefix(message, "undeclared reference"):
			hint = "a condition knows claims, caller.name, caller.subject, caller.client, path.NAME, query.NAME, method, host and now"
		case strings.HasPrefix(message, "found no matching overload"):
			hint = "both sides must have the same type, and only the plain functions of CEL are here"
			word = ""
		}
		line, column := e.Location.Line(), e.Location.Column()
		if line < 1 || column < 0 {
			line, column = 1, 0
		}
		at(line, column, len(word), "E0310", "condition: "+message, hint)
	}
}

// celMessage is a message of CEL in our words: without the parser's rules, and
// with operators as they are written.
func celMessage(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	text = strings.TrimSuffix(text, " (in container '')")
	if rest, ok := strings.CutPrefix(text, "Syntax error: "); ok {
		if strings.Contains(rest, "'<EOF>'") {
			return "it ends too early"
		}
		text, _, _ = strings.Cut(rest, " expecting ")
	}
	return strings.NewReplacer("'_", "'", "_'", "'").Replace(text)
}

// environment is what every condition knows.
func (cs *conditions) environment() (*cel.Env, error) {
	if cs.base != nil {
		return cs.base, nil
	}
	base, err := cel.NewCustomEnv(
		cel.StdLib(cel.StdLibSubset(env.NewLibrarySubset().
			AddIncludedMacros(operators.Has, operators.All, operators.Exists, operators.ExistsOne).
			AddIncludedFunctions(functions()...))),
		cel.ClearMacros(),
		cel.Macros(cel.HasMacro, cel.AllMacro, cel.ExistsMacro, cel.ExistsOneMacro),
		cel.EnableIdentifierEscapeSyntax(),
		cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserRecursionLimit(maxDepth),
		cel.ParserExpressionSizeLimit(maxCondition),
		cel.ExpressionNodeLimit(maxNodes),
		cel.Variable(nounClaims, cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("caller.name", cel.StringType),
		cel.Variable("caller.subject", cel.StringType),
		cel.Variable("caller.client", cel.StringType),
		cel.Variable("method", cel.StringType),
		cel.Variable("host", cel.StringType),
		cel.Variable("now", cel.TimestampType),
	)
	if err != nil {
		return nil, err
	}
	cs.base = base
	return base, nil
}

// extended is the environment with the parameters that a condition reads.
func (cs *conditions) extended(signature string, params []*condParam) (*cel.Env, error) {
	if len(params) == 0 {
		return cs.base, nil
	}
	if e := cs.envs[signature]; e != nil {
		return e, nil
	}
	var options []cel.EnvOption
	for _, p := range params {
		options = append(options, cel.Variable(p.variable, celType(p.Type)))
		if p.presence != "" {
			options = append(options, cel.Variable(p.presence, cel.BoolType))
		}
	}
	e, err := cs.base.Extend(options...)
	if err != nil {
		return nil, err
	}
	if cs.envs == nil {
		cs.envs = map[string]*cel.Env{}
	}
	cs.envs[signature] = e
	return e, nil
}

func celType(t merlon.ParamType) *cel.Type {
	switch t {
	case merlon.Integer:
		return cel.IntType
	case merlon.Number:
		return cel.DoubleType
	case merlon.Boolean:
		return cel.BoolType
	}
	return cel.StringType
}

// functions is the part of CEL's standard library that conditions have.
func functions() []*env.Function {
	whole := func(name string) *env.Function { return env.NewFunction(name) }
	some := func(name string, ids ...string) *env.Function {
		list := make([]*env.Overload, len(ids))
		for i, id := range ids {
			list[i] = env.NewOverload(id, nil, nil)
		}
		return env.NewFunction(name, list...)
	}
	return []*env.Function{
		whole(operators.LogicalAnd), whole(operators.LogicalOr), whole(operators.LogicalNot), whole(operators.Conditional),
		whole(operators.NotStrictlyFalse), whole(operators.Equals), whole(operators.NotEquals),
		whole(operators.Less), whole(operators.LessEquals), whole(operators.Greater), whole(operators.GreaterEquals),
		whole(operators.In), whole(operators.Index), whole(overloads.Size),
		whole(overloads.StartsWith), whole(overloads.EndsWith), whole(overloads.Contains),
		some(operators.Negate, overloads.NegateDouble, overloads.NegateInt64),
		some(operators.Add, overloads.AddInt64, overloads.AddDouble, overloads.AddDurationDuration,
			overloads.AddDurationTimestamp, overloads.AddTimestampDuration),
		some(operators.Subtract, overloads.SubtractInt64, overloads.SubtractDouble, overloads.SubtractDurationDuration,
			overloads.SubtractTimestampDuration, overloads.SubtractTimestampTimestamp),
		some(overloads.TypeConvertInt, overloads.IntToInt, overloads.DoubleToInt, overloads.StringToInt,
			overloads.TimestampToInt, overloads.DurationToInt),
		some(overloads.TypeConvertDouble, overloads.DoubleToDouble, overloads.IntToDouble, overloads.StringToDouble),
		some(overloads.TypeConvertString, overloads.StringToString, overloads.IntToString, overloads.BoolToString),
		whole(overloads.TypeConvertTimestamp), whole(overloads.TypeConvertDuration),
		some(overloads.TimeGetFullYear, overloads.TimestampToYear),
		some(overloads.TimeGetMonth, overloads.TimestampToMonth),
		some(overloads.TimeGetDate, overloads.TimestampToDayOfMonthOneBased),
		some(overloads.TimeGetDayOfWeek, overloads.TimestampToDayOfWeek),
		some(overloads.TimeGetHours, overloads.TimestampToHours, overloads.DurationToHours),
		some(overloads.TimeGetMinutes, overloads.TimestampToMinutes, overloads.DurationToMinutes),
		some(overloads.TimeGetSeconds, overloads.TimestampToSeconds, overloads.DurationToSeconds),
	}
}

// sizes tells CEL how large the values of a call can be, so that the cost of a
// condition has a bound before it ever runs. eval refuses what is larger.
type sizes struct{}

// EstimateSize bounds everything that comes with a call.
func (sizes) EstimateSize(checker.AstNode) *checker.SizeEstimate {
	return &checker.SizeEstimate{Max: maxInput}
}

// EstimateCallCost leaves the cost of functions to CEL.
func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// walker turns path.NAME, query.NAME and caller.NAME into variables of their
// own and notes which parameters are read.
type walker struct {
	info   *ast.SourceInfo
	ops    []*operation
	at     reportAt
	uses   map[string]*condParam
	claims map[string]bool
	all    bool // claims is used as a whole
	failed bool
}

// fail reports at the start of e.
func (w *walker) fail(e ast.Expr, width int, code, message, hint string) {
	w.failed = true
	loc := w.info.GetStartLocation(e.ID())
	line, column := loc.Line(), loc.Column()
	if line < 1 || column < 0 {
		line, column = 1, 0
	}
	w.at(line, column, width, code, message, hint)
}

func (w *walker) walk(e ast.Expr) {
	switch e.Kind() {
	case ast.IdentKind:
		w.ident(e)
	case ast.SelectKind:
		s := e.AsSelect()
		if s.Operand().Kind() == ast.IdentKind {
			switch noun := s.Operand().AsIdent(); noun {
			case nounPath, nounQuery:
				w.param(e, noun, s)
				return
			case nounCaller:
				w.caller(e, s)
				return
			case nounClaims:
				w.claims[s.FieldName()] = true
				return
			}
		}
		w.walk(s.Operand())
	case ast.CallKind:
		call := e.AsCall()
		if call.IsMemberFunction() {
			w.walk(call.Target())
		}
		for _, arg := range call.Args() {
			w.walk(arg)
		}
	case ast.ListKind:
		for _, item := range e.AsList().Elements() {
			w.walk(item)
		}
	case ast.ComprehensionKind:
		loop := e.AsComprehension()
		if hides(loop.IterVar()) || hides(loop.IterVar2()) {
			w.fail(e, 0, "E0315", fmt.Sprintf("the loop variable %q hides a name of conditions", loop.IterVar()), "choose another name for it")
			return
		}
		for _, part := range []ast.Expr{loop.IterRange(), loop.AccuInit(), loop.LoopCondition(), loop.LoopStep(), loop.Result()} {
			w.walk(part)
		}
	case ast.MapKind, ast.StructKind:
		w.fail(e, 0, "E0315", "a condition builds no maps and no messages", "use a list: x in [\"a\", \"b\"]")
	}
}

func hides(name string) bool {
	switch name {
	case nounClaims, nounCaller, nounPath, nounQuery, "method", "host", "now":
		return true
	}
	return false
}

func (w *walker) ident(e ast.Expr) {
	switch name := e.AsIdent(); name {
	case nounClaims:
		w.all = true
	case nounPath, nounQuery, nounCaller:
		w.fail(e, len(name), "E0315", fmt.Sprintf("%q is not a value; name a part of it, such as %s.x", name, name),
			"a name that is not a plain word goes between backquotes: query.`page-size`")
	default:
		if strings.HasPrefix(name, ".") {
			w.fail(e, len(name), "E0315", fmt.Sprintf("%q starts with a dot", name), "leave the dot out")
		}
	}
}

func (w *walker) caller(e ast.Expr, s ast.SelectExpr) {
	name := s.FieldName()
	if s.IsTestOnly() || !slices.Contains([]string{"name", "subject", "client"}, name) {
		w.fail(s.Operand(), len(nounCaller)+1+len(name), "E0315", fmt.Sprintf("caller has name, subject and client, always; not %q", name),
			"compare with \"\" to ask whether there is one")
		return
	}
	e.SetKindCase(ast.NewExprFactory().NewIdent(e.ID(), nounCaller+"."+name))
}

// param checks that every operation of the rule declares the parameter, alike.
func (w *walker) param(e ast.Expr, noun string, s ast.SelectExpr) {
	name := s.FieldName()
	full := noun + "." + name
	in := merlon.InPath
	if noun == nounQuery {
		in = merlon.InQuery
	}
	use := w.uses[full]
	if use == nil {
		use = &condParam{ParamSpec: merlon.ParamSpec{Name: name, In: in}, variable: full}
		for i, op := range w.ops {
			spec, ok := findParam(op, name, in)
			if !ok {
				w.fail(s.Operand(), len(full), "E0311", fmt.Sprintf("operation %q has no %s parameter %q", op.full(), noun, name),
					w.paramHint(op, name, in))
				return
			}
			if i > 0 && spec.Type != use.Type {
				w.fail(s.Operand(), len(full), "E0312", fmt.Sprintf("%s is %s in %q and %s in %q", full,
					typeName(use.Type), w.ops[0].full(), typeName(spec.Type), op.full()), "write a rule for each")
				return
			}
			use.Type = spec.Type
			use.rest = use.rest || strings.Contains(op.Path, "{"+name+"...}")
		}
		w.uses[full] = use
	}
	target := full
	if s.IsTestOnly() {
		if in == merlon.InPath {
			w.fail(s.Operand(), len(full), "E0315", fmt.Sprintf("%s is always there", full), "leave has() out")
			return
		}
		use.presence = "has " + full
		target = use.presence
	}
	e.SetKindCase(ast.NewExprFactory().NewIdent(e.ID(), target))
}

// findParam finds a parameter that an operation declares. A parameter of the
// template is one even where the contract does not describe it.
func findParam(op *operation, name string, in merlon.ParamIn) (merlon.ParamSpec, bool) {
	for _, p := range op.Params {
		if p.Name == name && p.In == in {
			return p, true
		}
	}
	if in == merlon.InPath && (strings.Contains(op.Path, "{"+name+"}") || strings.Contains(op.Path, "{"+name+"...}")) {
		return merlon.ParamSpec{Name: name, In: in, Required: true}, true
	}
	return merlon.ParamSpec{}, false
}

func (w *walker) paramHint(op *operation, name string, in merlon.ParamIn) string {
	var names []string
	for _, p := range op.Params {
		if p.In == in {
			names = append(names, p.Name)
		}
	}
	if hint := suggest(name, names); hint != "" {
		return hint
	}
	return "declare it in the contract, or write a rule of its own for the operation"
}

func typeName(t merlon.ParamType) string {
	return [...]string{"a string", "an integer", "a number", "a boolean"}[min(int(t), 3)]
}
