package intent
import ("testing";"os";"testing/fstest";"encoding/json";"fmt")
func TestQuick(t *testing.T){
 b,_:=os.ReadFile("/tmp/y/merlon.yaml")
 o,_:=os.ReadFile("/tmp/y/openapi.yaml")
 l,ds:=Load(fstest.MapFS{"merlon.yaml":{Data:b},"orders/openapi.yaml":{Data:o},"web/openapi.yaml":{Data:o}})
 for _,d:=range ds{fmt.Println(d.Error(),"|",d.Hint, d.Width,d.Also)}
 if l!=nil{j,_:=json.MarshalIndent(l.Intent,""," ");fmt.Println(string(j),l.Hash)}
}
