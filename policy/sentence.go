package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/parser"

	"merlon"
)

// ruleSentences copies the rules of s for one caller.
func ruleSentences(s *merlon.Service, caller string) []merlon.Rule {
	var list []merlon.Rule
	for _, r := range s.Rules {
		if r.Caller == caller {
			list = append(list, r)
		}
	}
	return list
}

// entry writes what a service says about one caller, as a line of YAML.
func entry(caller string, sentences []merlon.Rule) string {
	if len(sentences) == 1 {
		return caller + ": " + sentence(&sentences[0], true)
	}
	parts := make([]string, len(sentences))
	for i := range sentences {
		parts[i] = sentence(&sentences[i], false)
	}
	return caller + ": [" + strings.Join(parts, ", ") + "]"
}

// sentence writes one rule without its caller.
func sentence(r *merlon.Rule, short bool) string {
	operations := "[" + strings.Join(r.Operations, ", ") + "]"
	if r.All {
		operations = "all"
	}
	if short && r.When == "" && r.Mode == merlon.Enforce && r.Limit == nil {
		return operations
	}
	text := "{operations: " + operations
	if r.When != "" {
		text += ", when: '" + strings.ReplaceAll(r.When, "'", "''") + "'"
	}
	if r.Mode != merlon.Enforce {
		text += ", mode: " + r.Mode.String()
	}
	if r.Limit != nil {
		text += ", limit: " + limitText(r.Limit)
	}
	return text + "}"
}

// limitText writes a limit as the intent does.
func limitText(l *merlon.Limit) string {
	unit := "s"
	switch l.Window {
	case time.Minute:
		unit = "m"
	case time.Hour:
		unit = "h"
	}
	per := "client"
	if l.Per == merlon.PerCaller {
		per = "caller"
	}
	return fmt.Sprintf("{rate: %d/%s, burst: %d, per: %s}", l.Count, unit, l.Burst, per)
}

// conjuncts splits the condition of a rule at its outermost "and" and says
// which parts the call meets and which not.
func conjuncts(r *rule, op *operation, call *merlon.Call) (met, failed []string) {
	e, err := cel.NewCustomEnv(cel.Macros(cel.HasMacro, cel.AllMacro, cel.ExistsMacro, cel.ExistsOneMacro),
		cel.EnableMacroCallTracking(), cel.EnableIdentifierEscapeSyntax(), cel.ParserRecursionLimit(maxDepth))
	if err != nil {
		return nil, nil
	}
	parsed, issues := e.Parse(r.When)
	if issues.Err() != nil {
		return nil, nil
	}
	var parts []ast.Expr
	var split func(ast.Expr)
	split = func(e ast.Expr) {
		if e.Kind() == ast.CallKind && e.AsCall().FunctionName() == operators.LogicalAnd {
			for _, arg := range e.AsCall().Args() {
				split(arg)
			}
			return
		}
		parts = append(parts, e)
	}
	split(parsed.NativeRep().Expr())
	for _, part := range parts {
		text, err := parser.Unparse(part, parsed.NativeRep().SourceInfo(), parser.WrapOnColumn(2*maxCondition))
		if err != nil {
			return nil, nil
		}
		if part.Kind() == ast.CallKind && (part.AsCall().FunctionName() == operators.LogicalOr || part.AsCall().FunctionName() == operators.Conditional) {
			text = "(" + text + ")"
		}
		// One part alone, compiled as the whole was.
		c := &compiler{in: &merlon.Intent{}}
		if c.condition(&merlon.Rule{When: text}, []*operation{op}).eval(call, op) == nil {
			met = append(met, text)
		} else {
			failed = append(failed, text)
		}
	}
	return met, failed
}
